import torch


def attention_weights(q, keys):
    """q (d,), keys (n, d) -> attention weights (n,)."""
    logits = keys @ q / q.shape[-1] ** 0.5
    weights = torch.exp(logits - logits.max())  # softmax does not change when every logit moves by the same amount
    return weights / weights.sum()
