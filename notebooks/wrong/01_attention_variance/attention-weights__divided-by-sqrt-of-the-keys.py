# caught: The factor depends on d alone
import torch


def attention_weights(q, keys):
    """q (d,), keys (n, d) -> attention weights (n,)."""
    return torch.softmax(keys @ q / keys.shape[0] ** 0.5, dim=-1)
