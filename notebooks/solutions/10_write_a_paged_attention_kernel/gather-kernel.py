@triton.jit
def gather_kernel(cache, table, out, length, head, KV: tl.constexpr, BLOCK_SIZE: tl.constexpr, D: tl.constexpr):
    """Pointers to cache, block table and out; the sequence's length and the KV head; the cache's sizes."""
    i = tl.program_id(0)
    slots = tl.arange(0, BLOCK_SIZE)
    dims = tl.arange(0, D)
    block = tl.load(table + i)
    rows = (block * 2 * KV + head) * BLOCK_SIZE + slots
    valid = (i * BLOCK_SIZE + slots < length)[:, None]
    keys = tl.load(cache + rows[:, None] * D + dims[None, :], mask=valid)
    tl.store(out + (i * BLOCK_SIZE + slots)[:, None] * D + dims[None, :], keys, mask=valid)
