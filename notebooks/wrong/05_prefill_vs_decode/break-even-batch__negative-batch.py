# caught: There the intensity stays below 10 however large the batch is
import math


def break_even(ridge, flops, weight_bytes, kv_bytes):
    """FLOP/byte, operations of one token, bytes, bytes -> the smallest compute-bound batch."""
    return math.ceil(ridge * weight_bytes / (flops - ridge * kv_bytes) - 1e-9)
