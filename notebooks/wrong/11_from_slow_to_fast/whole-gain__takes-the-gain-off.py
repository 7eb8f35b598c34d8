# caught: The part takes time / factor, the others what they took
def faster(parts, part, factor):
    """{name: ms}, a name, a number -> (new ms of the step, its gain)."""
    before = sum(parts.values())
    after = before - parts[part] / factor
    return after, before / after
