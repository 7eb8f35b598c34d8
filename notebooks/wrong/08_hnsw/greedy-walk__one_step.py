# caught: one step is not a walk
def walk(links, distance, start):
    return min([start, *links[start]], key=distance)
