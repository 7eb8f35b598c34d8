# caught: IndexError
def slot(block_table, position, block_size):
    """Physical blocks in logical order, a token's position -> the number of its slot in the pool."""
    return block_table[position % block_size] * block_size + position // block_size
