# caught: At temperature 0.5
def probabilities(logits, temperature):
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    return [weight / sum(weights) for weight in weights]
