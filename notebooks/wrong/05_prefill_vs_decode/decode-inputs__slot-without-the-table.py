# caught: the slot is 5, but should be 9
def decode_inputs(token_ids, block_table, block_size):
    """All known tokens, the sequence's blocks -> (token to compute, its position, its slot, context length)."""
    position = len(token_ids) - 1
    return token_ids[-1], position, position, len(token_ids)
