# caught: sharpest_weight(64, 0.5, 100)
import math


def sharpest_weight(d, gain, keys):
    """Largest weight that one of `keys` keys can get under QK-norm when all gains of q and k equal `gain`."""
    return 1 / (1 + (keys - 1) * math.exp(-2 * math.sqrt(d) * gain))
