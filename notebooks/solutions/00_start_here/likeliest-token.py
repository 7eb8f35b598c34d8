def likeliest(logprobs):
    """{token id: log probability} -> the token id that is likeliest."""
    return max(logprobs, key=logprobs.get)
