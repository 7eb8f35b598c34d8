# caught: Only the new tokens' keys and values are counted for batch 64
def decode_bytes(batch, context, weight_bytes, kv_bytes_per_token):
    """Bytes that a decode step reads: `batch` sequences that attend to `context` tokens each."""
    return weight_bytes + batch * kv_bytes_per_token
