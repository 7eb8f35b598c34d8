# caught: behave like a softmax of q·k times 0.015625
import torch


def attention_weights(q, keys):
    """q (d,), keys (n, d) -> attention weights (n,)."""
    return torch.softmax(keys @ q / q.shape[-1], dim=-1)
