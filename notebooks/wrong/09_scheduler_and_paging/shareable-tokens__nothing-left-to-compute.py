# caught: the last token must be computed
def shareable_tokens(prompt, cached, block_size):
    """How many tokens of `prompt` come from the cache after `cached` was computed there."""
    shared = 0
    for end in range(block_size, min(len(cached), len(prompt)) + 1, block_size):
        if prompt[:end] != cached[:end]:
            break
        shared = end
    return shared
