# caught: only that part gets faster, the others stay
def faster(parts, part, factor):
    """{name: ms}, a name, a number -> (new ms of the step, its gain)."""
    before = sum(parts.values())
    return before / factor, factor
