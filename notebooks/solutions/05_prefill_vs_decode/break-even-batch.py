import math


def break_even(ridge, flops, weight_bytes, kv_bytes):
    """FLOP/byte, operations of one token, bytes, bytes -> the smallest compute-bound batch."""
    room = flops - ridge * kv_bytes
    return math.ceil(ridge * weight_bytes / room - 1e-9) if room > 0 else math.inf
