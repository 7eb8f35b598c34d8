# caught: only full blocks are shared
def shareable_tokens(prompt, cached, block_size):
    """How many tokens of `prompt` come from the cache after `cached` was computed there."""
    shared = 0
    while shared < min(len(prompt) - 1, len(cached)) and prompt[shared] == cached[shared]:
        shared += 1
    return shared
