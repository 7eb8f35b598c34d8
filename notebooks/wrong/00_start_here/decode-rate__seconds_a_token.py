# caught: should be 50
def decode_rate(metrics, num_tokens):
    return (metrics["total"] - metrics["first_token"]) / (num_tokens - 1)
