# caught: the newest gives all of its blocks
def plan(running, free_blocks, block_size):
    """running: (num_tokens, num_blocks), oldest first -> (indices that decode, indices preempted, in that order)."""
    decodes = []
    for index, (num_tokens, num_blocks) in enumerate(running):
        needs = num_tokens > num_blocks * block_size
        if not needs or free_blocks:
            decodes.append(index)
            free_blocks -= needs
    return decodes, []
