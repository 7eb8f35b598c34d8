# caught: The rank's qkv_proj holds only this rank's rows
def qkv_rows(shard, rank, ranks, num_heads, num_kv_heads, head_dim):
    size = (num_heads if shard == "q" else num_kv_heads) // ranks * head_dim
    before = {"q": 0, "k": num_heads, "v": num_heads + num_kv_heads}
    return rank * size, (rank + 1) * size, before[shard] * head_dim
