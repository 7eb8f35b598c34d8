# caught: into 2 equal pieces
def qkv_rows(heads, kv_heads, head_dim, rank, size):
    """Rows of the packed [q; k; v] matrix that `rank` of `size` holds, in its own order, as a list."""
    total = (heads + 2 * kv_heads) * head_dim
    return list(range(rank * total // size, (rank + 1) * total // size))
