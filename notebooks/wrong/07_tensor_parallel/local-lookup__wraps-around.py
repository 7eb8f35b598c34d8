# caught: that it does not hold
def local_lookup(token_ids, table, first):
    """token_ids (T), `table` = rows first, first + 1, ... of the vocabulary -> (T, hidden), zeros for ids held elsewhere."""
    local = token_ids - first
    return table[local % len(table)]
