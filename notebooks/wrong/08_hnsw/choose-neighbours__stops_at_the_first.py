# caught: does not end the search
def choose(candidates, m, between):
    chosen = []
    for distance, node in candidates:
        if len(chosen) == m or any(between(node, other) < distance for other in chosen):
            break
        chosen.append(node)
    return chosen
