# caught: the first large prefill would run out of memory
def count_blocks(total, utilization, used, peak, current, block_bytes, reserved):
    return int(total * utilization - used - reserved) // block_bytes
