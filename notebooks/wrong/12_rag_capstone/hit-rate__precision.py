# caught: that is precision
def hit_rate(found, right, k):
    shares = [any(passage in wanted for passage in row[:k]) / k for row, wanted in zip(found, right)]
    return sum(shares) / len(shares)
