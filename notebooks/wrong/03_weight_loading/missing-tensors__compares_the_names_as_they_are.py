# caught: Nothing is missing there
def missing_tensors(names, wanted, mapping):
    return set(wanted) - set(names)
