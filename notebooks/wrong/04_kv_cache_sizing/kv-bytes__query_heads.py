# caught: Only KV heads have them
def kv_bytes(config, itemsize):
    return 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * itemsize
