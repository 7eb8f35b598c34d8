"""A benchmark whose later rounds read nothing, because the first one filled the prefix cache."""

from __future__ import annotations

import random
from collections.abc import Callable

from course.museum import Exhibit


def buggy(lengths: list[int], rounds: int) -> list[list[list[int]]]:
    """Prompts of these lengths for each round: the same ones, so that all rounds are equal."""
    draw = random.Random(0)
    prompts = [[draw.randrange(1000) for _ in range(length)] for length in lengths]
    return [prompts] * rounds


def fixed(lengths: list[int], rounds: int) -> list[list[list[int]]]:
    """Other tokens in every round; only the lengths, which decide what a round costs, are the same."""
    draw = random.Random(0)
    return [[[draw.randrange(1000) for _ in range(length)] for length in lengths] for _ in range(rounds)]


def detect(prompts_of: Callable[[list[int], int], list[list[list[int]]]]) -> None:
    """Every round gives the engine's memory as many tokens to compute as the first."""
    from nanovllm.engine.block_manager import BlockManager
    from nanovllm.engine.sequence import Sequence
    from nanovllm.sampling_params import SamplingParams

    pool = BlockManager(num_blocks=64, block_size=16)
    computed = []
    for prompts in prompts_of([40, 70, 100], 3):
        computed.append(0)
        for number, prompt in enumerate(prompts):
            seq = Sequence(number, prompt, SamplingParams())
            pool.allocate(seq)
            start = seq.num_computed_tokens
            computed[-1] += len(prompt) - start
            seq.num_computed_tokens = len(prompt)
            pool.cache_computed_blocks(seq, start)
            pool.free(seq)
    assert len(set(computed)) == 1, f"the rounds compute {computed} prompt tokens: the later ones read from the cache"


EXHIBIT = Exhibit(
    name="warm_rounds_find_the_cache",
    chapter="11_from_slow_to_fast",
    title="The warm rounds of a benchmark read nothing",
    symptom="The first round is slow, the others are much faster, and everybody takes that for the warm-up. Users, who never "
    "send the same prompt twice, see the speed of the first round.",
    buggy=buggy,
    fixed=fixed,
    detect=detect,
    source="Easy to make with any engine that caches prefixes; benchmarks/throughput.py draws new prompts for each round.",
)
