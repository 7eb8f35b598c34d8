# caught: it counts layers
import numpy as np


def level(u, m):
    return float(np.floor(-np.log(u) / np.log(m)))
