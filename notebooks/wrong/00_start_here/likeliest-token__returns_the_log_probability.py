# caught: a log probability
def likeliest(logprobs):
    return max(logprobs.values())
