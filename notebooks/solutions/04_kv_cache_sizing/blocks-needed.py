def blocks_needed(lengths, block_size):
    return sum(math.ceil(length / block_size) for length in lengths)
