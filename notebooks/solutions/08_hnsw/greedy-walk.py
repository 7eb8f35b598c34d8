def walk(links, distance, start):
    node, here = start, distance(start)
    while True:
        nearest = min(links[node], key=distance, default=node)
        if distance(nearest) >= here:
            return node
        node, here = nearest, distance(nearest)
