# caught: The weights are read 64 times for batch 64 at context 1000
def decode_bytes(batch, context, weight_bytes, kv_bytes_per_token):
    """Bytes that a decode step reads: `batch` sequences that attend to `context` tokens each."""
    return batch * (weight_bytes + context * kv_bytes_per_token)
