# caught: all on one side
def choose(candidates, m, between):
    return [node for _, node in candidates[:m]]
