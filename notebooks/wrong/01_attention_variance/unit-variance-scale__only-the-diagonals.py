# caught: With two correlated covariances the scale
import math


def unit_variance_scale(cov_q, cov_k):
    """cov_q, cov_k (d, d) -> the factor f for which f * q·k has variance 1."""
    return 1 / math.sqrt((cov_q.diagonal() * cov_k.diagonal()).sum())
