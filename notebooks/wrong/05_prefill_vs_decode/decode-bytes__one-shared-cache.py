# caught: Only one sequence's keys and values are read for batch 64
def decode_bytes(batch, context, weight_bytes, kv_bytes_per_token):
    """Bytes that a decode step reads: `batch` sequences that attend to `context` tokens each."""
    return weight_bytes + context * kv_bytes_per_token
