# caught: is another tensor now. The graph goes on reading the old one
import torch


def fill(static, batch):
    """Two dicts of tensors; changes those in `static` and returns nothing of use."""
    padding = 4 - len(batch["token_ids"])
    static["token_ids"] = torch.cat([batch["token_ids"], torch.zeros(padding, dtype=torch.int64)])
    static["positions"] = torch.cat([batch["positions"], torch.zeros(padding, dtype=torch.int64)])
    static["slot_mapping"] = torch.cat([batch["slot_mapping"], torch.full((padding,), -1)])
    static["context_lens"] = torch.cat([batch["positions"] + 1, torch.zeros(padding, dtype=torch.int64)])
