"""The cost model against transformers and torch's own counter, the roofline's arithmetic, and the engine watched."""

from __future__ import annotations

import math

import pytest
import torch

from course import anatomy, plots, roofline
from course import prefill_decode as lesson
from course.exercises import CORRECT, WRONG, grade
from nanovllm import LLM
from nanovllm.config import EMBEDDED_MODEL, ModelConfig
from nanovllm.utils.loader import iterate_tensors

CONFIG = ModelConfig.from_folder(EMBEDDED_MODEL)
QWEN = anatomy.PUBLISHED["Qwen3-0.6B"]


@pytest.fixture(scope="module")
def llm():
    with LLM(device="cpu", dtype="float32", enable_prefix_caching=False, enforce_eager=True, max_num_seqs=4) as llm:
        yield llm


# --- costs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, QWEN], ids=["embedded", "Qwen3-0.6B"])
def test_operations_are_those_that_torch_counts(config):
    parts = anatomy.flops_by_part(config, context=1)
    extra = 63 * parts["LM head"] + (64 * 64 - 64 * 65 // 2) * parts["attention"]  # all logits, the full square
    assert roofline.prefill_cost(config, 64, 4).flops + extra == anatomy.transformers_flops(config, num_tokens=64)


def test_weights_are_the_checkpoints_bytes():
    # The embedded model's head is tied: its table is read as the head, so every tensor is read once.
    assert roofline.weight_bytes(CONFIG, 4) == 4 * sum(tensor.numel() for _, tensor in iterate_tensors(EMBEDDED_MODEL))


def test_bytes_are_weights_rows_and_caches():
    kv = 114_688  # 112 KiB a token
    cost = roofline.decode_cost(QWEN, batch=3, context=10, itemsize=2)
    assert cost.bytes == roofline.weight_bytes(QWEN, 2) + 3 * 1024 * 2 + 3 * 10 * kv + 3 * kv
    whole = roofline.prefill_cost(QWEN, 100, 2)
    pieces = [roofline.step_cost(QWEN, [roofline.Chunk(start, 25)], 2) for start in range(0, 100, 25)]
    head = 2 * QWEN.vocab_size * QWEN.hidden_size
    assert sum(piece.flops for piece in pieces) == whole.flops + 3 * head
    assert sum(piece.bytes for piece in pieces) > 3.9 * roofline.weight_bytes(QWEN, 2)


def test_roof():
    roof = roofline.Roof(flops=100.0, bandwidth=10.0)
    assert roof.ridge == 10
    assert [roof.attainable(x) for x in (1, 10, 50)] == [10, 100, 100]
    assert roof.seconds(roofline.Cost(flops=50, bytes=100)) == 10
    assert roof.seconds(roofline.Cost(flops=500, bytes=1)) == 5


def test_measures_are_positive_and_of_this_machine():
    device = torch.device("cpu")
    rates = roofline.measure_bandwidth([2**16, 2**20], device, torch.float32, rounds=2)
    assert all(1e8 < rate < 1e13 for rate in rates.values())
    assert 1e8 < roofline.measure_flops(128, device, torch.float32, rounds=2) < 1e14


# --- the engine, watched -------------------------------------------------------------------------------------------


def test_watched_steps_follow_the_tokens(llm):
    prompt = llm.tokenizer.encode("Once upon a time there was a dog.")
    steps = lesson.watch(llm, prompt, 4)
    assert [step.new for step in steps] == [len(prompt), 1, 1, 1]
    assert [p for step in steps for p in step.positions] == list(range(len(prompt) + 3))
    assert steps[0].token_ids == prompt
    assert [step.token_ids for step in steps[1:]] == [[step.token] for step in steps[:-1]]
    assert [step.token for step in steps] == [int(step.logits.argmax()) for step in steps]
    assert all(step.known == step.stored + 1 == step.context_len + 1 for step in steps)
    assert [step.head_input for step in steps] == [(1, 256)] * 4
    assert not llm.has_unfinished
    reference = anatomy.load_transformers(EMBEDDED_MODEL)
    assert [step.token for step in steps] == anatomy.greedy_by_transformers(reference, prompt, 4)


def test_a_shift_changes_decodes_and_no_prefill(llm):
    prompt = llm.tokenizer.encode("Once upon a time there was a dog.")
    right = lesson.watch(llm, prompt, 2)
    with lesson.shifted_decodes(llm, 1):
        wrong = lesson.watch(llm, prompt, 2)
    again = lesson.watch(llm, prompt, 2)
    assert torch.equal(right[0].logits, wrong[0].logits)
    assert (right[1].logits - wrong[1].logits).abs().max() > 1e-2
    assert torch.allclose(right[1].logits, again[1].logits, atol=1e-5)


def test_static_batching_by_hand():
    lengths = [5, 1, 2, 4, 3]
    assert lesson.static_steps(lengths, 2) == 5 + 4 + 3
    schedule = lesson.static_schedule(lengths, 2)
    assert len(schedule) == 12
    assert [sum(number in step for step in schedule) for number in range(5)] == lengths


def test_served_steps_give_each_request_its_tokens(llm):
    lengths = [6, 1, 3, 2, 5, 1]
    steps = lesson.served_steps(llm, lengths)
    assert [sum(number in step for step in steps) for number in range(6)] == lengths
    assert max(map(len, steps)) == 4
    assert len(steps) < lesson.static_steps(lengths, 4)


def test_pieces_beside_decodes_fill_the_budget_and_leave_nothing_behind():
    with LLM(device="cpu", dtype="float32", max_num_seqs=8, max_num_batched_tokens=40, enforce_eager=True) as llm:
        steps = lesson.pieces_beside(llm, 4, [90, 10])
        assert not llm.has_unfinished
    assert steps == [[20, 10], [36, 0], [34, 0]]  # half of 40 while a short prompt waits, then all but the 4 decodes


def test_gradients_keep_memory_and_the_other_modes_do_not():
    model = anatomy.load_transformers(EMBEDDED_MODEL)
    modes = (torch.enable_grad, torch.no_grad, torch.inference_mode)
    kept = [lesson.saved_for_backward(model, 16, mode) for mode in modes]
    assert kept[0] > 0
    assert kept[1:] == [0, 0]


def test_pictures_can_be_drawn():
    roof = roofline.Roof(1e12, 1e10)
    steps = [{"seconds": 1e-3, "prefill": n, "decode": 2} for n in (0, 9, 0)]
    figures = [
        lesson.draw_bandwidth({2**20: 1e10, 2**22: 5e9}, {"weights": 2**21}),
        lesson.draw_roofline({"here": roof}, {"decode": ([1.0, 2.0], [1e9, 2e9], "here")}),
        lesson.draw_decode_point(QWEN, 2, "here", roof, 4, 128),
        lesson.draw_times([("a", 1e-3, 2e-3), ("b", 1e-2, 2e-2)], "times"),
        lesson.draw_batches({"here": [(1, 1e-3), (2, 1e-3)]}),
        lesson.draw_schedule({"static": lesson.static_schedule([2, 1], 2)}, 2),
        lesson.draw_beside([{"budget": 16, "steps": steps}, {"budget": 8, "steps": steps}], "beside"),
        lesson.draw_pieces({"in order": [[6, 0], [3, 2]], "fair": [[4, 2], [5, 0]]}, decoding=2, budget=8),
    ]
    assert len({plots.png(figure) for figure in figures}) == len(figures)


# --- exercises -----------------------------------------------------------------------------------------------------


def test_break_even_is_the_roofline_s_crossing():
    def brute(ridge, flops, weight_bytes, kv_bytes):
        if flops <= ridge * kv_bytes:
            return math.inf
        low, high = 0, 1
        while high * flops < ridge * (weight_bytes + high * kv_bytes) * (1 - 1e-12):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if middle * flops < ridge * (weight_bytes + middle * kv_bytes) * (1 - 1e-12):
                low = middle
            else:
                high = middle
        return high

    assert grade("break-even-batch", brute).verdict == CORRECT
    assert grade("break-even-batch", lambda *args: 300).verdict == WRONG


def test_decode_bytes_is_the_cost_model_s_read():
    def from_the_model(batch, context, weight_bytes, kv_bytes_per_token):
        cost = roofline.decode_cost(QWEN, batch, context, 2)
        rows = batch * QWEN.hidden_size * 2
        assert kv_bytes_per_token == 114_688
        return cost.bytes - rows - batch * kv_bytes_per_token - roofline.weight_bytes(QWEN, 2) + weight_bytes

    assert grade("decode-bytes", from_the_model).verdict == CORRECT
