# caught: The nearer a log probability is to 0
def likeliest(logprobs):
    return max(logprobs, key=lambda token: abs(logprobs[token]))
