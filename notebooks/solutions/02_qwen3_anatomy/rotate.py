def rotate(x, angles):
    """x (T, heads, D), angles (T, D/2) -> (T, heads, D), each pair of each head turned by its token's angle."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]  # (T, 1, D/2): all heads of a token turn alike
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
