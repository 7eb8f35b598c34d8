# caught: The pair turns backwards
def rotate(x, angles):
    """x (T, heads, D), angles (T, D/2) -> (T, heads, D), each pair of each head turned by its token's angle."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)
