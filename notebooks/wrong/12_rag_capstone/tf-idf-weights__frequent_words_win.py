# caught: Rare words tell more than frequent ones
def weights(counts, texts_with, num_texts):
    raw = {term: 1 + math.log(count) for term, count in counts.items()}
    length = math.sqrt(sum(weight**2 for weight in raw.values()))
    return {term: weight / length for term, weight in raw.items()}
