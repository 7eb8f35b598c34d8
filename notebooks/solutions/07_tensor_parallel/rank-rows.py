def qkv_rows(heads, kv_heads, head_dim, rank, size):
    """Rows of the packed [q; k; v] matrix that `rank` of `size` holds, in its own order, as a list."""
    first_kv = heads * head_dim
    first_v = first_kv + kv_heads * head_dim
    mine_q, mine_kv = heads // size, max(1, kv_heads // size)
    start_kv = rank * kv_heads // size  # several ranks share a KV head where there are fewer heads than ranks
    rows = list(range(rank * mine_q * head_dim, (rank + 1) * mine_q * head_dim))
    for first in (first_kv, first_v):
        rows += range(first + start_kv * head_dim, first + (start_kv + mine_kv) * head_dim)
    return rows
