# caught: counts the wait for the first token
def decode_rate(metrics, num_tokens):
    return num_tokens / metrics["total"]
