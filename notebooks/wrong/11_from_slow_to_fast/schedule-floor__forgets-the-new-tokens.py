# caught: A chunk reads the cache of its cached and its new tokens
def least_seconds(steps, weight_bytes, kv_bytes, token_flops, bandwidth, speed):
    """[[(cached, new), ...], ...] and the machine's numbers -> the least seconds of all steps together."""
    seconds = 0.0
    for chunks in steps:
        flops = token_flops * sum(new for _, new in chunks)
        read = weight_bytes + kv_bytes * sum(cached for cached, _ in chunks)
        seconds += max(flops / speed, read / bandwidth)
    return seconds
