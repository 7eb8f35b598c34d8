# caught: recorded once and replayed at the temperatures
def choose(logits, temperatures, noise):
    """(B, V) logits, (B) temperatures, (B, V) Gumbel noise -> (B) token ids."""
    return (logits / temperatures[:, None] + noise * (temperatures > 0)[:, None]).argmax(-1)
