# caught: the position is 6, but should be 5. Positions count from 0
def decode_inputs(token_ids, block_table, block_size):
    """All known tokens, the sequence's blocks -> (token to compute, its position, its slot, context length)."""
    position = len(token_ids)
    last = position - 1
    slot = block_table[last // block_size] * block_size + last % block_size
    return token_ids[-1], position, slot, len(token_ids)
