def decode_bytes(batch, context, weight_bytes, kv_bytes_per_token):
    """Bytes that a decode step reads: `batch` sequences that attend to `context` tokens each."""
    return weight_bytes + batch * context * kv_bytes_per_token
