# caught: Each rank takes its own share of the heads
def qkv_rows(shard, rank, ranks, num_heads, num_kv_heads, head_dim):
    heads = {"q": num_heads // ranks, "k": num_kv_heads // ranks, "v": num_kv_heads // ranks}
    before = {"q": 0, "k": heads["q"], "v": heads["q"] + heads["k"]}
    return 0, heads[shard] * head_dim, before[shard] * head_dim
