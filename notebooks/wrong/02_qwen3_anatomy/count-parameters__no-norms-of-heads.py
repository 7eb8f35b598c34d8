# caught: each layer has two more norms
def count_parameters(config):
    """A model's config -> how many numbers all its weights hold together."""
    hidden, d = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * d, config.num_key_value_heads * d
    tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * hidden
    attention = hidden * (q + 2 * kv) + q * hidden
    mlp = 3 * hidden * config.intermediate_size
    norms = 2 * hidden
    return tables + config.num_hidden_layers * (attention + mlp + norms) + hidden
