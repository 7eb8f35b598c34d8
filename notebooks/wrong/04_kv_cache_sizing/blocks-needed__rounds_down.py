# caught: One token takes a block
def blocks_needed(lengths, block_size):
    return sum(length // block_size for length in lengths)
