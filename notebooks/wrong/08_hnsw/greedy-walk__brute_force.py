# caught: that is brute force
def walk(links, distance, start):
    return min(links, key=distance)
