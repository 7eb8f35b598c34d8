# caught: You turn neighbours
def rotate(x, angles):
    """x (T, heads, D), angles (T, D/2) -> (T, heads, D), each pair of each head turned by its token's angle."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
