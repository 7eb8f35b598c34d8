# caught: Every layer keeps keys and values of its own
def kv_bytes(config, itemsize):
    return 2 * config.num_key_value_heads * config.head_dim * itemsize
