# caught: a larger M means fewer nodes above
import math


def level(u, m):
    return math.floor(-math.log(u) * math.log(m))
