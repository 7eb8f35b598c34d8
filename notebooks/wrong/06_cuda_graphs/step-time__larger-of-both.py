# caught: The larger of both sums is only a lower bound
def step_time(kernels, launch):
    """Lengths of the kernels (list), time of one launch -> when the last kernel ends."""
    return max(len(kernels) * launch, sum(kernels))
