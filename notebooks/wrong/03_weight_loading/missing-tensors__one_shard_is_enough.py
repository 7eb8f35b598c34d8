# caught: A packed parameter is loaded when every one of its shards has come
def missing_tensors(names, wanted, mapping):
    filled = set()
    for name in names:
        *path, module, kind = name.split(".")
        filled.add(".".join([*path, mapping.get(module, (module, None))[0], kind]))
    return set(wanted) - filled
