# caught: 100 tokens were decoded, not 101
def decode_rate(metrics, num_tokens):
    return num_tokens / (metrics["total"] - metrics["first_token"])
