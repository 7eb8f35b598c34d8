# caught: With falling scores, after three tiles, m is
import torch


def online_step(state, scores, values):
    """(m, n, a) so far, scores (T) and values (T, D) of one tile -> (m, n, a) with the tile."""
    m, n, a = state
    new = scores.max()
    rescale = torch.exp(m - new)
    weights = torch.exp(scores - new)
    return new, n * rescale + weights.sum(), a * rescale + weights @ values
