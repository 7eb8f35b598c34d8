"""Runs prompts through the engine and compares greedy tokens and every row of logits with transformers'."""

from __future__ import annotations

import random

import torch

from nanovllm import LLM, SamplingParams

BLOCK = 16
TOLERANCE = 1e-4  # of the largest logit


class LogitsRecorder:
    """Keeps every row of logits that the engine's runner computes, with the tokens that it followed."""

    def __init__(self, llm: LLM):
        self.rows: list[tuple[list[int], torch.Tensor]] = []
        runner = llm.model_runner
        execute, compute_logits = runner.execute, runner.model.compute_logits
        sampled: list[list[int]] = []

        def recording_execute(batch):
            sampled[:] = [list(entry.seq.token_ids) for entry in batch.scheduled if entry.samples]
            return execute(batch)

        def recording_logits(hidden):
            logits = compute_logits(hidden)
            assert len(logits) == len(sampled)
            self.rows += zip(sampled, logits, strict=True)
            return logits

        runner.execute, runner.model.compute_logits = recording_execute, recording_logits


@torch.inference_mode()
def true_logits(model, token_ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([token_ids])).logits[0]


@torch.inference_mode()
def true_greedy(model, prompt: list[int], num: int) -> list[int]:
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return ids[0, len(prompt) :].tolist()


def check(model, llm: LLM, recorder: LogitsRecorder, prompts: list[list[int]], nums: list[int], alone: bool) -> list:
    """Generates, compares tokens and every row of logits with transformers', and returns the outputs."""
    recorder.rows.clear()
    params = [SamplingParams(temperature=0, max_tokens=num) for num in nums]
    if alone:
        outputs = [llm.generate(p, param, use_tqdm=False)[0] for p, param in zip(prompts, params, strict=True)]
    else:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    compare(model, recorder, prompts, nums, outputs)
    return outputs


def compare(model, recorder: LogitsRecorder, prompts: list[list[int]], nums: list[int], outputs: list) -> None:
    """Tokens equal transformers' greedy ones, and so does every recorded row of logits, within the tolerance."""
    for prompt, num, output in zip(prompts, nums, outputs, strict=True):
        assert output["token_ids"] == true_greedy(model, prompt, num)
    assert len(recorder.rows) == sum(nums)
    whole = [prompt + output["token_ids"] for prompt, output in zip(prompts, outputs, strict=True)]
    expected = [true_logits(model, ids) for ids in whole]
    for context, logits in recorder.rows:
        rows = [i for i, ids in enumerate(whole) if ids[: len(context)] == context]
        assert rows, "the engine computed logits for tokens that it did not return"
        want = expected[rows[0]][len(context) - 1]
        assert logits.shape == want.shape
        assert (logits - want).abs().max() <= TOLERANCE * want.abs().max()


def prompts_for(seed: int, vocab_size: int) -> list[list[int]]:
    """Ragged: one token, some, exactly a block, some blocks; the last two share their first two blocks."""
    rng = random.Random(1000 + seed)
    lengths = [1, rng.randint(2, 12), BLOCK, rng.randint(BLOCK + 1, 30), 2 * BLOCK + rng.randint(1, 9)]
    prompts = [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]
    prompts.append(prompts[-1][: 2 * BLOCK] + [rng.randrange(vocab_size) for _ in range(5)])
    return prompts
