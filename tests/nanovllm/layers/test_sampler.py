"""The sampler against transformers' logits processors, float64 arithmetic and statistics."""

from __future__ import annotations

import math
import sys
import types

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import make_checkpoint, random_prompts
from transformers import (
    AutoModelForCausalLM,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from nanovllm import LLM, SamplingParams
from nanovllm.engine.input_batch import prepare_sampling
from nanovllm.engine.llm_engine import derive_seed
from nanovllm.engine.sequence import Sequence
from nanovllm.layers.sampler import (
    SamplingBatch,
    apply_penalties,
    filter_logits,
    fmix32,
    gumbel_noise,
    sample,
    top_logprobs,
)

CPU = torch.device("cpu")


def batch_of(num: int, temperature: float = 1.0, first_position: int = 0, seed: int = 0) -> SamplingBatch:
    return SamplingBatch(
        temperatures=torch.full((num,), temperature),
        seeds=torch.full((num,), seed, dtype=torch.int64),
        positions=torch.arange(first_position, first_position + num),
    )


def draw(logits: torch.Tensor, num: int, seed: int = 0, temperature: float = 1.0, **filters) -> np.ndarray:
    """How often each token comes in `num` draws from one row of logits."""
    params = SamplingParams(temperature=temperature, **filters)
    counts = torch.zeros(len(logits), dtype=torch.int64)
    for start in range(0, num, 2000):
        rows = min(2000, num - start)
        seqs = [Sequence(i, [0] * 3, params, seed=derive_seed(seed, start + i)) for i in range(rows)]
        tokens = sample(logits.expand(rows, -1), prepare_sampling(seqs, len(logits), CPU))
        counts += tokens.bincount(minlength=len(logits))
    return counts.numpy()


def p_value(counts: np.ndarray, probs: np.ndarray) -> float:
    """Chi-square test of the counts; tokens that are expected less than five times are put together."""
    assert not counts[probs == 0].any()
    expected = counts.sum() * probs
    rare = expected < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(observed[expected > 0], expected[expected > 0] * observed.sum() / expected.sum()).pvalue


# What is drawn. The seeds are fixed, so that each test always sees the same p-value; 1e-3 would only be undercut by one
# correct sampler in a thousand.


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("vocab_size", [5, 131])
def test_tokens_come_as_often_as_the_softmax_says(temperature, vocab_size):
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 2
    probs = (logits.double() / temperature).softmax(-1).numpy()
    assert p_value(draw(logits, 6_000, seed=1, temperature=temperature), probs) > 1e-3


def test_the_chi_square_test_can_fail():
    logits = torch.randn(131, generator=torch.Generator().manual_seed(131))
    counts = draw(logits, 6_000, seed=1)
    assert p_value(counts, logits.double().softmax(-1).numpy()) > 1e-3
    assert p_value(counts, (logits.double() / 1.3).softmax(-1).numpy()) < 1e-9


@pytest.mark.parametrize("by", ["position", "seed"])
def test_a_request_and_many_requests_draw_alike(by):
    """One request over many positions, and many requests at one position, follow the same distribution."""
    logits = torch.linspace(-2, 2, 9)
    batch = batch_of(20_000, seed=5)
    if by == "seed":
        batch.seeds, batch.positions = torch.arange(20_000), torch.full((20_000,), 7)
    counts = sample(logits.expand(20_000, -1), batch).bincount(minlength=9).numpy()
    assert p_value(counts, logits.double().softmax(-1).numpy()) > 1e-3


def test_neighbours_are_independent():
    """Pairs of tokens at neighbouring positions of one request are as frequent as independent ones."""
    logits = torch.tensor([0.0, 1.0, 0.5, -0.5])
    tokens = sample(logits.expand(40_000, -1), batch_of(40_000, seed=9))
    pairs = (tokens[:-1] * 4 + tokens[1:]).bincount(minlength=16).numpy()
    probs = logits.double().softmax(-1)
    assert p_value(pairs, torch.outer(probs, probs).flatten().numpy()) > 1e-3


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"top_k": 6, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_filtered_draws_follow_the_softmax_of_what_is_left(filters):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(3)) * 1.5
    left = transformers_filters(logits[None] / 0.8, **filters)[0]
    counts = draw(logits, 6_000, seed=2, temperature=0.8, **filters)
    assert p_value(counts, left.double().softmax(-1).numpy()) > 1e-3
    assert (counts > 0).sum() == left.isfinite().sum()


# Filters


def transformers_filters(scores: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    if top_k > 0:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p > 0:
        scores = MinPLogitsWarper(min_p)(None, scores)
    return scores


def our_filters(scores: torch.Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> torch.Tensor:
    rows, vocab_size = scores.shape
    return filter_logits(
        scores,
        torch.full((rows,), top_k or vocab_size),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
    )


FILTERS = [
    {"top_k": k, "top_p": p, "min_p": m}
    for k in (0, 1, 2, 7, 130, 131, 500)
    for p in (1.0, 0.87, 0.37)
    for m in (0.0, 0.1)
] + [{"top_p": p} for p in (1e-6, 0.013, 0.53, 0.99, 0.999)]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda f: "-".join(map(str, f.values())))
def test_filters_keep_what_transformers_keeps(filters):
    scores = torch.randn(64, 131, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 4, 64)[:, None]
    expected = transformers_filters(scores.clone(), **filters)
    # Tie-free rows: the same tokens with the same logits stay, and nothing else changes.
    assert torch.equal(our_filters(scores, **filters), expected)


@pytest.mark.parametrize("filters", [f for f in FILTERS if f.get("top_p", 1.0) == 1.0], ids=str)
def test_ties_are_kept_or_dropped_together_as_in_transformers(filters):
    scores = torch.randint(-4, 5, (64, 131), generator=torch.Generator().manual_seed(1)).float() / 2
    assert torch.equal(our_filters(scores, **filters), transformers_filters(scores.clone(), **filters))


@pytest.mark.parametrize("filters", [f for f in FILTERS if f.get("top_p", 1.0) < 1.0], ids=str)
def test_top_p_keeps_as_many_of_tied_tokens_as_transformers(filters):
    """Which of the tied tokens at the border stay is arbitrary (they are equally likely): their values are compared."""
    scores = torch.randint(-4, 5, (64, 131), generator=torch.Generator().manual_seed(1)).float() / 2
    ours, theirs = our_filters(scores, **filters), transformers_filters(scores.clone(), **filters)
    assert torch.equal(ours.sort(-1).values, theirs.sort(-1).values)
    kept = ours.isfinite()
    assert torch.equal(ours[kept], scores[kept])


def test_the_most_likely_token_always_stays():
    scores = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0]])
    for filters in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}):
        kept = our_filters(scores, **filters).isfinite()
        assert kept[0].tolist() == [False, True, False] and kept[1].any()


def test_rows_are_filtered_each_by_its_own_settings():
    scores = torch.randn(4, 131, generator=torch.Generator().manual_seed(2)) * 2
    settings = [{"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.3}, {}]
    together = filter_logits(
        scores,
        torch.tensor([s.get("top_k", 131) for s in settings]),
        torch.tensor([s.get("top_p", 1.0) for s in settings]),
        torch.tensor([s.get("min_p", 0.0) for s in settings]),
    )
    for row, setting in enumerate(settings):
        assert torch.equal(together[row], transformers_filters(scores[row : row + 1].clone(), **setting)[0])


# Penalties


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 2.0])
def test_repetition_penalty_equals_transformers(penalty):
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(131, generator=generator) * 3
    prompt = torch.randint(131, (20,), generator=generator).tolist()
    output = torch.randint(131, (15,), generator=generator).tolist()
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits[None].clone())[0]
    ours = logits.clone()
    apply_penalties(ours, prompt, output, penalty, 0.0, 0.0)
    assert torch.equal(ours, expected)
    assert torch.equal(ours, logits) == (penalty == 1.0)


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.7), (-1.0, 0.3), (2.0, -2.0)])
@pytest.mark.parametrize("repetition", [1.0, 1.4])
@pytest.mark.parametrize("num_output", [0, 1, 40])
def test_presence_and_frequency_penalties_count_the_output(presence, frequency, repetition, num_output):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(31, generator=generator)
    prompt = torch.randint(31, (10,), generator=generator).tolist()
    output = torch.randint(31, (num_output,), generator=generator).tolist()
    expected = logits.double().tolist()
    for token in range(31):
        if token in prompt or token in output:
            expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
        if token in output:
            expected[token] -= presence + frequency * output.count(token)
    ours = logits.clone()
    apply_penalties(ours, prompt, output, repetition, presence, frequency)
    assert torch.allclose(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_the_engine_penalizes_each_request_by_its_own_tokens(tmp_path):
    """Greedy with a repetition penalty is transformers' greedy with the same, beside a request without one."""
    folder = make_checkpoint(tmp_path, vocab_size=23)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompts = random_prompts(3, 4, 9, vocab_size=23)
    penalties = [1.5, 1.0, 1.1]
    expected = []
    for prompt, penalty in zip(prompts, penalties, strict=True):
        ids = torch.tensor([prompt])
        everything = torch.ones_like(ids)
        settings = dict(max_new_tokens=20, do_sample=False, repetition_penalty=penalty, pad_token_id=0)
        expected.append(model.generate(ids, attention_mask=everything, **settings)[0, len(prompt) :].tolist())
    with LLM(folder, device="cpu") as llm:
        params = [SamplingParams(temperature=0, max_tokens=20, repetition_penalty=p) for p in penalties]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        plain = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=20), use_tqdm=False)
    assert [out["token_ids"] for out in outputs] == expected
    assert outputs[0]["token_ids"] != plain[0]["token_ids"]
    assert outputs[1]["token_ids"] == plain[1]["token_ids"]


# Greedy rows


def test_greedy_rows_beside_sampled_ones_take_the_largest_logit():
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(200, 131, generator=generator)
    greedy = torch.arange(200) % 2 == 0
    batch = batch_of(200, temperature=2.0)
    alone = sample(logits, batch)
    batch.temperatures = batch.temperatures.masked_fill(greedy, 0.0)
    mixed = sample(logits, batch)
    assert torch.equal(mixed[greedy], logits.argmax(-1)[greedy])
    assert torch.equal(mixed[~greedy], alone[~greedy])
    assert (mixed[~greedy] != logits.argmax(-1)[~greedy]).any()
    batch.top_k, batch.top_p, batch.min_p = torch.full((200,), 131), torch.full((200,), 0.5), torch.zeros(200)
    assert torch.equal(sample(logits, batch)[greedy], logits.argmax(-1)[greedy])
    batch.all_greedy = True
    assert torch.equal(sample(logits, batch), logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_sampled_in_float32(dtype):
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(7)).to(dtype)
    batch = batch_of(500)
    assert torch.equal(sample(logits.expand(500, -1), batch), sample(logits.float().expand(500, -1), batch))


def test_extreme_logits_give_no_nan():
    logits = torch.tensor([[1e30, -1e30, 0.0], [-torch.inf, 2.0, -torch.inf]])
    for temperature in (1e-5, 1.0, 100.0):
        for filtered in (False, True):
            batch = batch_of(2, temperature=temperature)
            if filtered:
                batch.top_k, batch.top_p, batch.min_p = (
                    torch.full((2,), 2),
                    torch.full((2,), 0.9),
                    torch.full((2,), 0.1),
                )
            assert sample(logits, batch).tolist() == [0, 1]


# Noise


def test_noise_does_not_depend_on_batch_mates():
    seeds = torch.tensor([3, 2**62 + 1, 3, 99])
    positions = torch.tensor([0, 5, 6, 4000])
    together = gumbel_noise(seeds, positions, 1000)
    for row in range(4):
        assert torch.equal(gumbel_noise(seeds[row : row + 1], positions[row : row + 1], 1000)[0], together[row])
        assert torch.equal(gumbel_noise(seeds[row : row + 1], positions[row : row + 1], 77)[0], together[row, :77])


def test_a_sampled_request_draws_the_same_alone_and_in_company(tmp_path):
    folder = make_checkpoint(tmp_path)
    prompts = random_prompts(6, 3, 40)
    params = [SamplingParams(temperature=0.9, top_p=0.9 if i % 2 else 1.0, seed=i, max_tokens=12) for i in range(6)]
    with LLM(folder, device="cpu", max_num_batched_tokens=16, max_num_seqs=4, num_kvcache_blocks=8) as llm:
        together = llm.generate(prompts, params, use_tqdm=False)
        alone = [llm.generate(p, param, use_tqdm=False)[0] for p, param in zip(prompts, params, strict=True)]
        other = llm.generate(prompts[0], SamplingParams(temperature=0.9, seed=77, max_tokens=12), use_tqdm=False)
    assert [out["token_ids"] for out in together] == [out["token_ids"] for out in alone]
    assert other[0]["token_ids"] != alone[0]["token_ids"]


@pytest.mark.parametrize("fused", [False, True])
def test_which_sampler_draws_a_row_depends_on_the_row_alone(fused, monkeypatch):
    """The kernel's noise may differ by some millionths: a filter of a batch mate must not choose between the two."""
    kernel = types.ModuleType("nanovllm.kernels.sample")
    kernel.sample = lambda logits, *_: torch.full((len(logits),), -7)
    monkeypatch.setitem(sys.modules, kernel.__name__, kernel)
    logits = torch.randn(5, 90, generator=torch.Generator().manual_seed(5))
    kinds = [{}, {"top_k": 3}, {"temperature": 0}, {"top_p": 0.2, "min_p": 0.1}, {"temperature": 0, "top_k": 2}]
    seqs = [Sequence(i, [0] * (i + 1), SamplingParams(**kind), seed=10 + i) for i, kind in enumerate(kinds)]
    alone = [sample(logits[i : i + 1], prepare_sampling([seqs[i]], 90, CPU)).item() for i in range(5)]
    together = sample(logits, prepare_sampling(seqs, 90, CPU, fused)).tolist()
    assert together == ([-7, alone[1], -7, alone[3], -7] if fused else alone)


def to_uniform(noise: torch.Tensor) -> np.ndarray:
    return torch.exp(-torch.exp(-noise.double())).numpy()


@pytest.mark.parametrize("axis", ["seeds", "positions", "tokens"])
def test_noise_is_gumbel(axis):
    """Kolmogorov-Smirnov over many seeds, many positions and many tokens, with the other two fixed."""
    num = 40_000
    fixed = torch.full((num,), 12345)
    noise = {
        "seeds": lambda: gumbel_noise(torch.arange(num) * 2**31 + 5, fixed, 3)[:, 2],
        "positions": lambda: gumbel_noise(fixed, torch.arange(num), 3)[:, 2],
        "tokens": lambda: gumbel_noise(fixed[:1], fixed[:1], num)[0],
    }[axis]()
    assert stats.kstest(noise.double().numpy(), "gumbel_r").pvalue > 1e-3
    assert stats.kstest(to_uniform(noise), "uniform").pvalue > 1e-3
    assert noise.isfinite().all() and len(noise.unique()) > 0.98 * num


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(np.corrcoef(to_uniform(a.flatten()), to_uniform(b.flatten()))[0, 1])


@pytest.mark.parametrize("bit", range(0, 63, 3))
def test_one_bit_of_a_seed_changes_everything(bit):
    position = torch.tensor([17])
    base = gumbel_noise(torch.tensor([0x1234_5678_9ABC]), position, 20_000)
    changed = gumbel_noise(torch.tensor([0x1234_5678_9ABC ^ 1 << bit]), position, 20_000)
    assert abs(correlation(base, changed)) < 4.5 / math.sqrt(20_000)
    assert (base == changed).float().mean() < 1e-3


@pytest.mark.parametrize("step", [1, 2, 3, 16, 255, 256, 4096])
def test_neighbouring_positions_tokens_and_seeds_do_not_correlate(step):
    bound = 4.5 / math.sqrt(100 * 2000)
    seeds, positions = torch.full((100,), 7), torch.arange(100)
    noise = gumbel_noise(seeds, positions, 2000 + step)
    assert abs(correlation(noise[:, :2000], noise[:, step:])) < bound
    assert abs(correlation(noise[:, :2000], gumbel_noise(seeds, positions + step, 2000))) < bound
    assert abs(correlation(noise[:, :2000], gumbel_noise(seeds + step, positions, 2000))) < bound
    # The classic mistake is a key of seed + position: neighbours would repeat each other.
    assert abs(correlation(noise[:, :2000], gumbel_noise(seeds - 1, positions + 1, 2000))) < bound


def test_the_hash_is_murmur3s_finalizer():
    """Its published constants in Python's exact integers, as a check of the int64 arithmetic."""

    def exact(x: int) -> int:
        for multiplier, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
            x = (x ^ x >> shift) * multiplier % 2**32
        return x ^ x >> 16

    values = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xDEADBEEF, *range(1000, 1100)]
    assert fmix32(torch.tensor(values)).tolist() == [exact(x) for x in values]
    assert len(set(fmix32(torch.arange(100_000)).tolist())) == 100_000


# Log probabilities


def test_logprobs_equal_transformers_log_softmax(tmp_path):
    folder = make_checkpoint(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = random_prompts(5, 2, 30, seed=3)
    params = [
        SamplingParams(temperature=0, max_tokens=6, logprobs=5),
        SamplingParams(temperature=1.3, max_tokens=6, logprobs=0, seed=1),
        SamplingParams(temperature=3.0, max_tokens=6, logprobs=1, seed=2),
        SamplingParams(temperature=0, max_tokens=6),
        # The model's own probabilities are reported: before penalties, temperature and filters.
        SamplingParams(temperature=2.0, max_tokens=6, logprobs=20, seed=3, repetition_penalty=1.5, top_k=3),
    ]
    with LLM(folder, device="cpu", max_num_batched_tokens=16, max_num_seqs=3) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    assert outputs[3]["logprobs"] is None
    for prompt, param, output in zip(prompts, params, outputs, strict=True):
        if param.logprobs is None:
            continue
        ids = output["token_ids"]
        with torch.inference_mode():
            expected = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert len(output["logprobs"]) == len(ids) == 6
        for token, found, row in zip(ids, output["logprobs"], expected, strict=True):
            assert set(found) == {*row.topk(param.logprobs).indices.tolist(), token}
            assert all(abs(value - row[key]) < 1e-4 for key, value in found.items())
            assert list(found.values())[: param.logprobs] == sorted(found.values(), reverse=True)[: param.logprobs]


def test_logprobs_of_a_tiny_vocabulary():
    """More tokens asked for than there are: all of them."""
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    (found,) = top_logprobs(logits, torch.tensor([0]), 20)
    assert list(found) == [2, 1, 0]
    assert math.isclose(sum(math.exp(value) for value in found.values()), 1, rel_tol=1e-6)
