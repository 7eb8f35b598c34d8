# caught: It is the other way round
def choose(candidates, m, between):
    chosen = []
    for distance, node in candidates:
        if len(chosen) < m and all(between(node, other) < distance for other in chosen):
            chosen.append(node)
    return chosen
