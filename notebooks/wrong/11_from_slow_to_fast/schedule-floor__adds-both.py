# caught: You add arithmetic and memory
def least_seconds(steps, weight_bytes, kv_bytes, token_flops, bandwidth, speed):
    """[[(cached, new), ...], ...] and the machine's numbers -> the least seconds of all steps together."""
    seconds = 0.0
    for chunks in steps:
        flops = token_flops * sum(new for _, new in chunks)
        read = weight_bytes + kv_bytes * sum(cached + new for cached, new in chunks)
        seconds += flops / speed + read / bandwidth
    return seconds
