# caught: Subtract the largest logit before exp
import torch


def attention_weights(q, keys):
    """q (d,), keys (n, d) -> attention weights (n,)."""
    weights = torch.exp(keys @ q / q.shape[-1] ** 0.5)
    return weights / weights.sum()
