# caught: not to 1
def probabilities(logits, temperature):
    weights = [math.exp(logit) for logit in logits]
    return [weight / sum(weights) / temperature for weight in weights]
