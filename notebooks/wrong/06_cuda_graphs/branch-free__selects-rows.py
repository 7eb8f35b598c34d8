# caught: a shape depends on values, but a recording has no values yet
def choose(logits, temperatures, noise):
    """(B, V) logits, (B) temperatures, (B, V) Gumbel noise -> (B) token ids."""
    tokens = logits.argmax(-1)
    warm = temperatures > 0
    tokens[warm] = (logits[warm] / temperatures[warm, None] + noise[warm]).argmax(-1)
    return tokens
