# caught: not to 1
def probabilities(logits, temperature):
    largest = max(logits)
    return [math.exp((logit - largest) / temperature) for logit in logits]
