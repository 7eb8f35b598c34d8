# caught: M does not matter at all
import math


def level(u, m):
    return math.floor(-math.log(u) / math.log(2))
