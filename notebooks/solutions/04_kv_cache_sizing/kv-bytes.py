def kv_bytes(config, itemsize):
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize
