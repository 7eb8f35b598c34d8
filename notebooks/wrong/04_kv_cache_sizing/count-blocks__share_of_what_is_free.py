# caught: gpu_memory_utilization is a share of the whole GPU
def count_blocks(total, utilization, used, peak, current, block_bytes, reserved):
    return int((total - used) * utilization - (peak - current) - reserved) // block_bytes
