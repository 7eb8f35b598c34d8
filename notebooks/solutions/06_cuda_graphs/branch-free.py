import torch


def choose(logits, temperatures, noise):
    """(B, V) logits, (B) temperatures, (B, V) Gumbel noise -> (B) token ids."""
    greedy = temperatures == 0
    divisor = torch.where(greedy, 1.0, temperatures)[:, None]
    drawn = (logits / divisor + noise).argmax(-1)
    return torch.where(greedy, logits.argmax(-1), drawn)
