# caught: Eps stands under the root
def rms_norm(x, gain, eps):
    """x (..., n), gain (n) -> (..., n), each vector of the last dimension normalized by itself."""
    return x / (x.square().mean(-1, keepdim=True).sqrt() + eps) * gain
