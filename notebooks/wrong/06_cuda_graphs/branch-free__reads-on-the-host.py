# caught: Your function cannot be recorded. _local_scalar_dense: a number was read on the host
def choose(logits, temperatures, noise):
    """(B, V) logits, (B) temperatures, (B, V) Gumbel noise -> (B) token ids."""
    if (temperatures == 0).all():
        return logits.argmax(-1)
    return (logits / temperatures.clamp(min=1e-6)[:, None] + noise).argmax(-1)
