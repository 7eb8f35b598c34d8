"""The LM head in shards: two ranks as two threads of this process, over gloo."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from nanovllm.engine.tensor_parallel import make_group
from nanovllm.layers.embedding import ParallelLMHead
from nanovllm.utils.context import TensorParallel

VOCAB, HIDDEN = 7, 4

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch is built without gloo")


def on_two_ranks(work) -> list:
    """What `work(tp)` returns on each of two ranks."""
    store, results, errors = dist.HashStore(), {}, []

    def run(rank: int) -> None:
        try:
            group = make_group(store, rank, 2, torch.device("cpu"), local=True, timeout=timedelta(seconds=30))
            results[rank] = work(TensorParallel(rank, 2, group))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(2)]


def head_of(table: torch.Tensor, tp: TensorParallel) -> ParallelLMHead:
    head = ParallelLMHead(VOCAB, HIDDEN, tp)
    head.weight.weight_loader(head.weight, table, None)
    return head


def test_shards_side_by_side_are_the_logits():
    table, hidden = torch.randn(VOCAB, HIDDEN), torch.randn(3, HIDDEN)

    def work(tp):
        head = head_of(table, tp)
        shard = head.shard(hidden)
        return head.first, head.num_tokens, shard, head.gather(shard), head(hidden)

    for first, num_tokens, shard, gathered, logits in on_two_ranks(work):
        assert shard.shape == (3, 4)
        torch.testing.assert_close(shard[:, :num_tokens], (hidden @ table.T)[:, first : first + num_tokens])
        torch.testing.assert_close(logits, hidden @ table.T)
        assert torch.equal(gathered, logits)


def test_the_largest_of_the_ranks():
    def work(tp):
        return tp.maximum(torch.tensor([[3, -(2**60)], [2**62, -5]][tp.rank])).tolist()

    assert on_two_ranks(work) == [[2**62, -5]] * 2


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_ranks_draw_what_one_draws_and_never_padding(temperature, monkeypatch):
    """Every logit is negative, so the zero that the padding row computes would be the best of all."""
    pytest.importorskip("triton")
    from nanovllm.engine import decode_rows

    one_at_a_time, kernel = threading.Lock(), decode_rows.sample_shard

    def sample_shard(*args):  # Triton's interpreter serves one thread
        with one_at_a_time:
            return kernel(*args)

    monkeypatch.setattr(decode_rows, "sample_shard", sample_shard)
    table, hidden = -torch.rand(VOCAB, HIDDEN) - 5, torch.rand(8, HIDDEN) + 1

    def draw(tp):
        rows = decode_rows.DecodeRows(8, 64, 16, torch.device("cpu"))
        rows.temperatures.fill_(temperature)
        rows.seeds.copy_(torch.arange(8))
        head = head_of(table, tp)
        rows.draw(head.shard(hidden), head)
        return rows.tokens.tolist()

    expected = draw(TensorParallel())
    assert on_two_ranks(draw) == [expected] * 2
    assert max(expected) < VOCAB and (len(set(expected)) > 1 or not temperature)
