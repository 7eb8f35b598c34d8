"""One engine in a process of its own: reads a job, generates its workloads, writes how long each round took.

Every engine runs here, ours too, through its documented interface (`LLM`, `SamplingParams`, `generate`). nano-vllm's
package is called nanovllm as ours is, so nothing of ours is imported before the job says which engine is meant.
Started by `engines.run`; job and answer are JSON files.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

STARTUP_PHASES = {
    "weights": ["nanovllm.engine.model_runner:load_model"],
    "warm_up": ["nanovllm.engine.model_runner:ModelRunner._warm_up"],
    "capture": [
        "nanovllm.engine.model_runner:ModelRunner._measure_graphs",
        "nanovllm.engine.cuda_graphs:DecodeGraphs.record",
    ],
}
"""The functions of our engine that a phase of its start-up spends its time in."""


def locate(name: str) -> tuple[object, str]:
    """`module:Class.function` -> (the module or class that holds it, its name there); raises AttributeError."""
    module, _, path = name.partition(":")
    *parents, last = path.split(".")
    owner = functools.reduce(getattr, parents, importlib.import_module(module))
    getattr(owner, last)
    return owner, last


def time_phases(seconds: dict[str, float]) -> None:
    """Makes the functions of STARTUP_PHASES add their time to `seconds`."""
    import torch

    def timed(function: Callable, phase: str) -> Callable:
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start

        return wrapper

    for phase, names in STARTUP_PHASES.items():
        for name in names:
            owner, attribute = locate(name)
            setattr(owner, attribute, timed(getattr(owner, attribute), phase))


class NanoVLLMCourse:
    """This repository's engine."""

    def __init__(self, job: dict, phases: dict[str, float]):
        from nanovllm import LLM, SamplingParams

        self.import_done = time.time()
        time_phases(phases)
        self.llm, self.SamplingParams = LLM(job["model"], **job["settings"]), SamplingParams
        runner = self.llm.model_runner
        self.info = {"attention_backend": runner.attention_backend, "block_size": runner.block_size}

    def generate(self, prompts: list[list[int]], output_tokens: list[int], temperature: float) -> list[int]:
        params = [self.SamplingParams(temperature=temperature, max_tokens=n, ignore_eos=True) for n in output_tokens]
        return [len(output["token_ids"]) for output in self.llm.generate(prompts, params, use_tqdm=False)]

    def close(self) -> None:
        self.llm.close()


class NanoVLLM(NanoVLLMCourse):
    """GeeeekExplorer/nano-vllm, whose `LLM` has the same interface; from the checkout that PYTHONPATH names."""

    def __init__(self, job: dict, phases: dict[str, float]):
        import nanovllm
        from nanovllm import LLM, SamplingParams

        home = Path(nanovllm.__file__).resolve()
        if Path(job["peer_path"]).resolve() not in home.parents:
            raise SystemExit(f"import nanovllm gave {home}, not the checkout in {job['peer_path']}")
        self.import_done = time.time()
        self.llm, self.SamplingParams = LLM(job["model"], **job["settings"]), SamplingParams
        self.info = {}

    def close(self) -> None:
        """Its engine ends at the interpreter's exit."""


class VLLM:
    """vllm-project/vllm, the installed package. No tokenizer is made: prompts are ids and stay ids."""

    def __init__(self, job: dict, phases: dict[str, float]):
        from vllm import LLM, SamplingParams

        self.import_done = time.time()
        self.llm = LLM(model=job["model"], skip_tokenizer_init=True, **job["settings"])
        self.SamplingParams = SamplingParams
        self.info = {}

    def generate(self, prompts: list[list[int]], output_tokens: list[int], temperature: float) -> list[int]:
        params = [
            self.SamplingParams(temperature=temperature, max_tokens=n, ignore_eos=True, detokenize=False)
            for n in output_tokens
        ]
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(requests, params, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    def close(self) -> None:
        """Its processes end with this one."""


ENGINES = {"nanovllm": NanoVLLMCourse, "nano-vllm": NanoVLLM, "vllm": VLLM}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    running = time.time()
    phases: dict[str, float] = {}
    engine = ENGINES[job["engine"]](job, phases)
    ready = time.time()
    answer = {"info": engine.info, "workloads": []}
    first_token, number = None, 0
    for workload in job["workloads"]:
        seconds = []
        for _ in range(workload["rounds"]):
            # Other prompts in each round, so that no engine finds them in its prefix cache.
            prompts = [[(token + number) % job["ids"] for token in prompt] for prompt in workload["prompts"]]
            number += 1
            start = time.perf_counter()
            lengths = engine.generate(prompts, workload["output_tokens"], job["temperature"])
            seconds.append(time.perf_counter() - start)
            first_token = first_token or time.time()
            if lengths != workload["output_tokens"]:
                raise SystemExit("a request did not get the tokens that it asked for")
            total = sum(lengths)
            print(f"{total:8} tokens in {seconds[-1]:8.3f} s: {total / seconds[-1]:9.1f} tokens/s", flush=True)
        answer["workloads"].append(seconds)
    answer["startup"] = {
        "python": running - job["started"],
        "import": engine.import_done - running,
        "engine": ready - engine.import_done,
        **phases,
        "first_token": first_token - ready,
        "total": first_token - job["started"],
    }
    Path(sys.argv[2]).write_text(json.dumps(answer))
    engine.close()


if __name__ == "__main__":
    main()
