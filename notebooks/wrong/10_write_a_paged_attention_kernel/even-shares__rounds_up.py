# caught: shares have
def share(program, programs, total):
    """Number of the program, of all programs, of all tiles -> (its first tile, the first tile that is not its own)."""
    size = -(-total // programs)
    return min(program * size, total), min((program + 1) * size, total)
