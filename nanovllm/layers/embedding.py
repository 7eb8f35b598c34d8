"""Token embedding and LM head, each rank holding a range of the vocabulary."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nanovllm.layers.packed import PackedWeight
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.loader import check_rows, copy_exactly


class VocabParallelEmbedding(nn.Module):
    """Rows rank * V/size to (rank + 1) * V/size of the (V, hidden_size) table.

    A vocabulary that the ranks cannot share evenly is padded at its end.
    """

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel):
        super().__init__()
        self.tp = tp
        self.vocab_size = vocab_size
        self.rows = -(-vocab_size // tp.size)
        self.first = tp.rank * self.rows
        self.num_tokens = max(0, min(self.rows, vocab_size - self.first))  # the rest of the rows is padding
        self.weight = nn.Parameter(torch.empty(self.rows, hidden_size), requires_grad=False)
        self.weight.weight_loader = self.load_shard

    def load_shard(self, parameter: nn.Parameter, loaded: torch.Tensor, shard: str | None) -> None:
        check_rows(loaded, self.vocab_size)
        mine = loaded[self.first : self.first + self.rows]
        copy_exactly(parameter.data[: mine.shape[0]], mine)
        parameter.data[mine.shape[0] :].zero_()

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(T) ids -> (T, hidden_size)."""
        if self.tp.size == 1:
            return F.embedding(token_ids, self.weight)
        local = token_ids - self.first
        mine = (local >= 0) & (local < self.rows)
        hidden = F.embedding(local.masked_fill(~mine, 0), self.weight)
        return self.tp.all_reduce(hidden.masked_fill(~mine.unsqueeze(-1), 0))


class ParallelLMHead(VocabParallelEmbedding):
    """The same split read the other way: hidden states (B, hidden_size) -> logits (B, V), whole on every rank."""

    def __init__(self, vocab_size: int, hidden_size: int, tp: TensorParallel):
        super().__init__(vocab_size, hidden_size, tp)
        self.packed: PackedWeight | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.gather(self.shard(hidden))

    def shard(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, hidden_size) -> (B, rows): the logits of this rank's tokens, from `first` on; zeros behind `num_tokens`."""
        if self.packed is not None:
            return self.packed.linear(hidden, self.weight, None)
        return F.linear(hidden, self.weight)

    def gather(self, logits: torch.Tensor) -> torch.Tensor:
        """The ranks' shards (B, rows) side by side: (B, V)."""
        return self.tp.all_gather_last(logits)[:, : self.vocab_size]
