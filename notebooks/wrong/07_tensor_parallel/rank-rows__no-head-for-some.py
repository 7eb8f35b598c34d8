# caught: hold the same KV head
def qkv_rows(heads, kv_heads, head_dim, rank, size):
    """Rows of the packed [q; k; v] matrix that `rank` of `size` holds, in its own order, as a list."""
    rows = []
    first = 0
    for number in (heads, kv_heads, kv_heads):
        mine = number // size
        rows += range(first + rank * mine * head_dim, first + (rank + 1) * mine * head_dim)
        first += number * head_dim
    return rows
