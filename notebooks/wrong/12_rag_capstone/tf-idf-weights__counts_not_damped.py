# caught: the weight of 'the'
def weights(counts, texts_with, num_texts):
    raw = {
        term: count * (math.log((1 + num_texts) / (1 + texts_with.get(term, 0))) + 1) for term, count in counts.items()
    }
    length = math.sqrt(sum(weight**2 for weight in raw.values()))
    return {term: weight / length for term, weight in raw.items()}
