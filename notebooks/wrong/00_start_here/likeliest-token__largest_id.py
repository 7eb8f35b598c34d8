# caught: should be 7
def likeliest(logprobs):
    return max(logprobs)
