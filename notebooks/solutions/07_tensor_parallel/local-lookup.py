def local_lookup(token_ids, table, first):
    """token_ids (T), `table` = rows first, first + 1, ... of the vocabulary -> (T, hidden), zeros for ids held elsewhere."""
    local = token_ids - first
    mine = (local >= 0) & (local < len(table))
    found = table[local.where(mine, torch.zeros_like(local))]  # an index that exists; its row is thrown away below
    return found * mine[:, None]
