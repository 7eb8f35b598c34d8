def count_blocks(total, utilization, used, peak, current, block_bytes, reserved):
    return int(total * utilization - used - (peak - current) - reserved) // block_bytes
