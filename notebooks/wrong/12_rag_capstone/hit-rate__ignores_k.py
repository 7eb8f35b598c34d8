# caught: Look at the first k only
def hit_rate(found, right, k):
    hits = [any(passage in wanted for passage in row) for row, wanted in zip(found, right)]
    return sum(hits) / len(hits)
