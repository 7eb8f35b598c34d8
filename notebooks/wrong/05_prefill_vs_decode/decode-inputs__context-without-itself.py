# caught: the context length is 5, but should be 6. The new token attends to itself as well
def decode_inputs(token_ids, block_table, block_size):
    """All known tokens, the sequence's blocks -> (token to compute, its position, its slot, context length)."""
    position = len(token_ids) - 1
    slot = block_table[position // block_size] * block_size + position % block_size
    return token_ids[-1], position, slot, position
