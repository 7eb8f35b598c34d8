# caught: not only with the last one
def choose(candidates, m, between):
    chosen = []
    for distance, node in candidates:
        if len(chosen) < m and (not chosen or between(node, chosen[-1]) >= distance):
            chosen.append(node)
    return chosen
