# caught: After one tile, n is nan
import torch


def online_step(state, scores, values):
    """(m, n, a) so far, scores (T) and values (T, D) of one tile -> (m, n, a) with the tile."""
    m, n, a = state
    new = torch.maximum(m, scores.max())
    rescale = torch.exp(new - m)
    weights = torch.exp(scores - new)
    return new, n * rescale + weights.sum(), a * rescale + weights @ values
