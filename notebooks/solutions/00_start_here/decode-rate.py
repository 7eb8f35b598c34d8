def decode_rate(metrics, num_tokens):
    """{"first_token": seconds, "total": seconds, ...}, tokens generated -> tokens per second."""
    return (num_tokens - 1) / (metrics["total"] - metrics["first_token"])
