# caught: behave like a softmax of q·k times 1
import torch


def attention_weights(q, keys):
    """q (d,), keys (n, d) -> attention weights (n,)."""
    return torch.softmax(keys @ q, dim=-1)
