# caught: too many nodes go up
import math


def level(u, m):
    return round(-math.log(u) / math.log(m))
