# caught: You count the bytes only
def least_seconds(steps, weight_bytes, kv_bytes, token_flops, bandwidth, speed):
    """[[(cached, new), ...], ...] and the machine's numbers -> the least seconds of all steps together."""
    seconds = 0.0
    for chunks in steps:
        seconds += (weight_bytes + kv_bytes * sum(cached + new for cached, new in chunks)) / bandwidth
    return seconds
