# caught: exp overflows
def probabilities(logits, temperature):
    weights = [math.exp(logit / temperature) for logit in logits]
    return [weight / sum(weights) for weight in weights]
