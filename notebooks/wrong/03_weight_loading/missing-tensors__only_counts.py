# caught: Counting tensors is not enough
def missing_tensors(names, wanted, mapping):
    if len(names) == sum(len(shards) for shards in wanted.values()):
        return set()
    published = {target: original for original, target in mapping.items()}
    needed = set()
    for parameter, shards in wanted.items():
        *path, module, kind = parameter.split(".")
        needed |= {".".join([*path, published.get((module, shard), module), kind]) for shard in shards}
    return needed - set(names)
