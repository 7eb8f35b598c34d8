# caught: One right passage is enough
def hit_rate(found, right, k):
    hits = [wanted <= set(row[:k]) for row, wanted in zip(found, right)]
    return sum(hits) / len(hits)
