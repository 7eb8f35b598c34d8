# caught: The first token differs
def shareable_tokens(prompt, cached, block_size):
    """How many tokens of `prompt` come from the cache after `cached` was computed there."""
    shared = 0
    for start in range(0, min(len(cached), len(prompt) - 1) - block_size + 1, block_size):
        if prompt[start : start + block_size] == cached[start : start + block_size]:
            shared += block_size
    return shared
