# caught: is row 0 of this rank's part
def local_lookup(token_ids, table, first):
    """token_ids (T), `table` = rows first, first + 1, ... of the vocabulary -> (T, hidden), zeros for ids held elsewhere."""
    mine = (token_ids >= first) & (token_ids < first + len(table))
    return table[token_ids.clamp(0, len(table) - 1)] * mine[:, None]
