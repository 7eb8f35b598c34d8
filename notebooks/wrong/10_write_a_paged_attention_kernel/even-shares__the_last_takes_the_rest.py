# caught: shares have 2 to 4 tiles
def share(program, programs, total):
    """Number of the program, of all programs, of all tiles -> (its first tile, the first tile that is not its own)."""
    size = total // programs
    return program * size, total if program == programs - 1 else (program + 1) * size
