# caught: two different numbers
def count_parameters(config):
    """A model's config -> how many numbers all its weights hold together."""
    hidden, d = config.hidden_size, config.head_dim
    kv = config.num_key_value_heads * d
    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    attention = hidden * (hidden + 2 * kv) + hidden * hidden
    mlp = 3 * hidden * config.intermediate_size
    norms = 2 * hidden + 2 * d
    return tables + config.num_hidden_layers * (attention + mlp + norms) + hidden
