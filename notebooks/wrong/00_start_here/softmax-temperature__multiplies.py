# caught: makes your distribution flatter
def probabilities(logits, temperature):
    largest = max(logits)
    weights = [math.exp((logit - largest) * temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]
