# caught: you return its inverse
def faster(parts, part, factor):
    """{name: ms}, a name, a number -> (new ms of the step, its gain)."""
    before = sum(parts.values())
    after = before - parts[part] + parts[part] / factor
    return after, after / before
