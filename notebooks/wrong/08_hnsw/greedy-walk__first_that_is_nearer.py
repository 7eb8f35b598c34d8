# caught: Take the nearest
def walk(links, distance, start):
    node = start
    while True:
        nearer = [other for other in links[node] if distance(other) < distance(node)]
        if not nearer:
            return node
        node = nearer[0]
