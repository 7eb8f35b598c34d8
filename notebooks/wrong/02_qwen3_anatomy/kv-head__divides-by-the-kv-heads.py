# caught: With 8 query heads and 8 KV heads
def kv_head(h, num_heads, num_kv_heads):
    """Query head h -> the KV head that it reads, for any num_heads that is a multiple of num_kv_heads."""
    return h // num_kv_heads
