def decode_rate(metrics, num_tokens):
    """Metrics with "first_token" and "total" in seconds, and the tokens generated -> decoded tokens per second."""
    return (num_tokens - 1) / (metrics["total"] - metrics["first_token"])
