# caught: is 10, but should be 11
import math


def break_even(ridge, flops, weight_bytes, kv_bytes):
    """FLOP/byte, operations of one token, bytes, bytes -> the smallest compute-bound batch."""
    room = flops - ridge * kv_bytes
    return int(ridge * weight_bytes / room) if room > 0 else math.inf
