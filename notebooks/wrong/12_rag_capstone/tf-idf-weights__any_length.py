# caught: a long text must not win by being long
def weights(counts, texts_with, num_texts):
    return {
        term: (1 + math.log(count)) * (math.log((1 + num_texts) / (1 + texts_with.get(term, 0))) + 1)
        for term, count in counts.items()
    }
