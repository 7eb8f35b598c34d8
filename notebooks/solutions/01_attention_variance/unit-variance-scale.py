import math

import torch


def unit_variance_scale(cov_q, cov_k):
    """cov_q, cov_k (d, d) -> the factor f for which f * q·k has variance 1."""
    return 1 / math.sqrt(torch.trace(cov_q @ cov_k))
