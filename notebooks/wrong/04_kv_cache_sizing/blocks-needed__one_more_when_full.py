# caught: A full block needs no other
def blocks_needed(lengths, block_size):
    return sum(length // block_size + 1 for length in lengths)
