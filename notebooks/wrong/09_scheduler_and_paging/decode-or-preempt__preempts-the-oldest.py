# caught: the newest gives all of its blocks
def plan(running, free_blocks, block_size):
    """running: (num_tokens, num_blocks), oldest first -> (indices that decode, indices preempted, in that order)."""
    decodes, preempted = [], []
    alive = list(range(len(running)))
    for index, (num_tokens, num_blocks) in enumerate(running):
        needs = num_tokens > num_blocks * block_size
        while index in alive and needs and free_blocks == 0:
            oldest = alive.pop(0)
            preempted.append(oldest)
            free_blocks += running[oldest][1]
        if index in alive:
            decodes.append(index)
            free_blocks -= needs
    return decodes, preempted
