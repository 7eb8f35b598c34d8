# caught: the end of the last share is 8, but should be 10
def share(program, programs, total):
    """Number of the program, of all programs, of all tiles -> (its first tile, the first tile that is not its own)."""
    size = total // programs
    return program * size, (program + 1) * size
