# caught: is 26, but should be 30
def step_time(kernels, launch):
    """Lengths of the kernels (list), time of one launch -> when the last kernel ends."""
    end = 0.0
    for index, kernel in enumerate(kernels):
        end = max(index * launch, end) + kernel
    return end
