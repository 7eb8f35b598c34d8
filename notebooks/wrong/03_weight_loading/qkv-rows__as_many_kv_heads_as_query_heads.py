# caught: k and v have KV heads
def qkv_rows(shard, rank, ranks, num_heads, num_kv_heads, head_dim):
    size = num_heads // ranks * head_dim
    return rank * size, (rank + 1) * size, "qkv".index(shard) * size
