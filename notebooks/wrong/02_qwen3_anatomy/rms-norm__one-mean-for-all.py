# caught: Each row has its own mean
def rms_norm(x, gain, eps):
    """x (..., n), gain (n) -> (..., n), each vector of the last dimension normalized by itself."""
    return x / (x.square().mean() + eps).sqrt() * gain
