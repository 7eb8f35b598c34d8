# caught: That is the batch for a ridge of 300 and 1 MB of keys and values a sequence if keys and values were free
import math


def break_even(ridge, flops, weight_bytes, kv_bytes):
    """FLOP/byte, operations of one token, bytes, bytes -> the smallest compute-bound batch."""
    return math.ceil(ridge * weight_bytes / flops)
