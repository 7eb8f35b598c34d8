# caught: No two sequences write into the same block
def blocks_needed(lengths, block_size):
    return math.ceil(sum(lengths) / block_size)
