# caught: With two identity matrices of size 64 the scale is 0.015625, but should be 0.125
import torch


def unit_variance_scale(cov_q, cov_k):
    """cov_q, cov_k (d, d) -> the factor f for which f * q·k has variance 1."""
    return 1 / torch.trace(cov_q @ cov_k)
