# caught: With cov_q = 4 I and cov_k = I of size 64 the scale is 0.125, but should be 0.0625
import math


def unit_variance_scale(cov_q, cov_k):
    """cov_q, cov_k (d, d) -> the factor f for which f * q·k has variance 1."""
    return 1 / math.sqrt(len(cov_q))
