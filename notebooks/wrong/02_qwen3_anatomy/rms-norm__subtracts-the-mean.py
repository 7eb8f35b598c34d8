# caught: nothing is subtracted
def rms_norm(x, gain, eps):
    """x (..., n), gain (n) -> (..., n), each vector of the last dimension normalized by itself."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * gain
