# caught: Host and device work at the same time: the sum is too much
def step_time(kernels, launch):
    """Lengths of the kernels (list), time of one launch -> when the last kernel ends."""
    return len(kernels) * launch + sum(kernels)
