# caught: You read the weights once for each sequence
def least_seconds(steps, weight_bytes, kv_bytes, token_flops, bandwidth, speed):
    """[[(cached, new), ...], ...] and the machine's numbers -> the least seconds of all steps together."""
    seconds = 0.0
    for chunks in steps:
        flops = token_flops * sum(new for _, new in chunks)
        read = sum(weight_bytes + kv_bytes * (cached + new) for cached, new in chunks)
        seconds += max(flops / speed, read / bandwidth)
    return seconds
