# caught: Token t has its own angles
def rotate(x, angles):
    """x (T, heads, D), angles (T, D/2) -> (T, heads, D), each pair of each head turned by its token's angle."""
    cos, sin = angles[0].cos(), angles[0].sin()
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
