# caught: The walk does not end
def walk(links, distance, start):
    node = start
    while links[node]:
        node = min(links[node], key=distance)
    return node
