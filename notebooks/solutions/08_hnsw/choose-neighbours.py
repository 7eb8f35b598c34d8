def choose(candidates, m, between):
    chosen = []
    for distance, node in candidates:
        if len(chosen) == m:
            break
        if all(between(node, other) >= distance for other in chosen):
            chosen.append(node)
    return chosen
