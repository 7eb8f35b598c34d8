# caught: Hidden_size is not needed
def kv_bytes(config, itemsize):
    return (
        2
        * config.num_hidden_layers
        * config.num_key_value_heads
        * (config.hidden_size // config.num_attention_heads)
        * itemsize
    )
