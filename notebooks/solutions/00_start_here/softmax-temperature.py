def probabilities(logits, temperature):
    """Logits (list of float), temperature > 0 -> probabilities in the same order."""
    largest = max(logits)
    weights = [math.exp((logit - largest) / temperature) for logit in logits]
    total = sum(weights)
    return [weight / total for weight in weights]
