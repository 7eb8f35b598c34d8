def missing_tensors(names, wanted, mapping):
    published = {target: original for original, target in mapping.items()}
    needed = set()
    for parameter, shards in wanted.items():
        *path, module, kind = parameter.split(".")
        for shard in shards:
            needed.add(".".join([*path, published.get((module, shard), module), kind]))
    return needed - set(names)
