# caught: the end of the last share is 11, but should be 12
def share(program, programs, total):
    """Number of the program, of all programs, of all tiles -> (its first tile, the first tile that is not its own)."""
    return program * total // programs, (program + 1) * total // programs - 1
