# caught: each rank takes its heads from each of the three parts
def qkv_rows(heads, kv_heads, head_dim, rank, size):
    """Rows of the packed [q; k; v] matrix that `rank` of `size` holds, in its own order, as a list."""
    part = heads // size * head_dim
    rows = []
    for first in (0, heads * head_dim, (heads + kv_heads) * head_dim):
        rows += range(first + rank * part, first + (rank + 1) * part)
    return rows
