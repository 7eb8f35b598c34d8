# caught: A token leaves a key and a value in each head
def kv_bytes(config, itemsize):
    return config.num_hidden_layers * config.num_key_value_heads * config.head_dim * itemsize
