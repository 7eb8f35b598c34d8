"""Whatever computes a request, its tokens are the same: backends, CUDA graphs, two ranks, and a soak, on one machine.

Four parts on the embedded model, each guarded: where one fails the others still run, and the script exits with 1.
In float32 tokens must be equal; flash-attn has only half precision. A difference passes only where a float64 model of
transformers sees a tie (soak.py). On a CPU the same script runs with the backends, and without the graphs, of a CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, record, write
from soak import SENTENCES, TOLERANCE, Load, Oracle, Soak, judge
from soak import Request as SoakRequest

from nanovllm import LLM, SamplingParams
from nanovllm.config import EMBEDDED_MODEL
from nanovllm.outputs import RequestOutput

WORST_FACTOR, MEAN_FACTOR = 2.0, 1.5
"""A backend's bfloat16 log probabilities may be so much farther from float32's than those of transformers in bfloat16."""


@dataclass(frozen=True)
class Machine:
    """What this machine can run, and how much is asked of it."""

    device: str
    requests: int
    prompts: int
    max_tokens: int

    @property
    def backends(self) -> list[str]:
        """Those that serve float32, the definition first."""
        return ["reference", "triton"] if self.device == "cuda" else ["reference", "numba"]

    @property
    def has_flash_attn(self) -> bool:
        return self.device == "cuda" and importlib.util.find_spec("flash_attn") is not None


class Disagreement(Exception):
    """A part found what must not be."""


def real_prompts(num: int) -> list[list[int]]:
    """Beginnings of sentences, one a length, as token ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    texts = [tokenizer.encode(" ".join(SENTENCES[i:] + SENTENCES[:i])) for i in range(len(SENTENCES))]
    return [list(ids[: 4 + 3 * n]) for n, ids in zip(range(num), itertools.cycle(texts))]


def generate(machine: Machine, params: SamplingParams, **settings: Any) -> list[RequestOutput]:
    settings = {"num_kvcache_blocks": 512 if settings["attention_backend"] != "flash_attn" else 64} | settings
    with LLM(device=machine.device, max_num_seqs=32, max_model_len=1024, **settings) as llm:
        return llm.generate(real_prompts(machine.prompts), params, use_tqdm=False)


def greedy(machine: Machine, **settings: Any) -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=machine.max_tokens, ignore_eos=True)
    return generate(machine, params, **settings)


def same(machine: Machine, expected: list[RequestOutput], got: list[RequestOutput], dtype: str) -> dict[str, int]:
    """How many prompts draw the same tokens, and how many part at a tie; raises Disagreement for any other."""
    oracle = Oracle(EMBEDDED_MODEL, TOLERANCE[dtype])
    params = SamplingParams(temperature=0, max_tokens=machine.max_tokens, ignore_eos=True)
    ties, wrong = 0, []
    for prompt, a, b in zip(real_prompts(machine.prompts), expected, got, strict=True):

        def allowed(made: list[int], prompt: list[int] = prompt) -> set[int]:
            return oracle.allowed(prompt, made, params, 0)

        tie, found = judge(SoakRequest(tuple(prompt), params), a, b, allowed, 2 * oracle.tolerance)
        ties += tie
        if found and not tie:
            wrong.append(found)
    if wrong:
        raise Disagreement("; ".join(wrong[:3]) + f" ({len(wrong)} of {len(got)} prompts)")
    return {"prompts": len(got), "equal": len(got) - ties, "ties": ties}


def backends_agree(machine: Machine) -> dict[str, Any]:
    """Greedy tokens of each backend are the reference's, and in bfloat16 no backend is much farther off than transformers."""
    outputs = {b: greedy(machine, attention_backend=b, dtype="float32") for b in machine.backends}
    expected = outputs["reference"]
    found: dict[str, Any] = {
        f"{backend} float32": same(machine, expected, output, "float32")
        for backend, output in outputs.items()
        if backend != "reference"
    }
    if machine.has_flash_attn:
        got = greedy(machine, attention_backend="flash_attn", dtype="float16")
        found["flash_attn float16"] = same(machine, expected, got, "float16")
    one = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    exact = generate(machine, one, attention_backend="reference", dtype="float32")
    yardstick = transformers_bfloat16(machine, exact)
    found["transformers bfloat16"] = rounded(yardstick)
    names = [*machine.backends[: 2 if machine.device == "cuda" else 1], *["flash_attn"] * machine.has_flash_attn]
    far = []
    for backend in names:
        rough = generate(machine, one, attention_backend=backend, dtype="bfloat16")
        off = error(
            (a["logprobs"][0][token], b["logprobs"][0][token])
            for a, b in zip(exact, rough, strict=True)
            for token in a["logprobs"][0].keys() & b["logprobs"][0].keys()
        )
        found[f"{backend} bfloat16"] = rounded(off)
        if off["worst"] > WORST_FACTOR * yardstick["worst"] or off["mean"] > MEAN_FACTOR * yardstick["mean"]:
            far.append(backend)
    if far:
        raise Disagreement(f"{', '.join(far)} in bfloat16 is too far from float32: {found}")
    return found


def error(pairs: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Number, largest and mean of the absolute differences."""
    off = [abs(a - b) for a, b in pairs]
    return {"log probabilities": len(off), "worst": max(off), "mean": sum(off) / len(off)}


def rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {key: round(value, 4) for key, value in numbers.items()}


@torch.inference_mode()
def transformers_bfloat16(machine: Machine, exact: list[RequestOutput]) -> dict[str, float]:
    """How far transformers' bfloat16 log probabilities are from the exact ones, on the same device."""
    from transformers import Qwen3ForCausalLM

    model = Qwen3ForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.bfloat16).eval().to(machine.device)
    pairs = []
    for prompt, output in zip(real_prompts(machine.prompts), exact, strict=True):
        row = model(torch.tensor([prompt], device=machine.device)).logits[0, -1].float().log_softmax(dim=-1).tolist()
        pairs += [(logprob, row[token]) for token, logprob in output["logprobs"][0].items()]
    return error(pairs)


def graphs_agree(machine: Machine) -> dict[str, Any] | None:
    """Steps replayed as graphs, in turn and ahead, draw the tokens of eager ones. None where there is no GPU."""
    if machine.device != "cuda":
        return None
    found = {}
    for backend, dtype in [("triton", "float32")] + [("flash_attn", "float16")] * machine.has_flash_attn:
        settings = {"attention_backend": backend, "dtype": dtype}
        expected = greedy(machine, enforce_eager=True, async_scheduling=False, **settings)
        for eager, ahead in [(True, True), (False, False), (False, True)]:
            got = greedy(machine, enforce_eager=eager, async_scheduling=ahead, **settings)
            found[f"{backend} {dtype} {mode(eager, ahead)}"] = same(machine, expected, got, dtype)
    return found


def mode(eager: bool, ahead: bool) -> str:
    return f"{'eager' if eager else 'graphs'} {'ahead' if ahead else 'in turn'}"


def ranks_agree(machine: Machine) -> dict[str, Any] | None:
    """Two ranks draw one process's tokens, over NCCL or gloo. None where there is one GPU."""
    if machine.device == "cuda" and torch.cuda.device_count() < 2:
        return None
    settings = {"attention_backend": machine.backends[-1], "dtype": "float32"}
    one = greedy(machine, **settings)
    found = {}
    for eager in (True, False) if machine.device == "cuda" else (True,):
        two = greedy(machine, tensor_parallel_size=2, enforce_eager=eager, **settings)
        name = f"nccl {'eager' if eager else 'graphs'}" if machine.device == "cuda" else "gloo"
        found[name] = same(machine, one, two, "float32")
    return found


def soak_agrees(machine: Machine) -> dict[str, Any]:
    """Random requests under every pressure draw what each draws alone.

    Requests that look back at their tokens take one step at a time, so those without them are a load of their own.
    """
    kinds = [("float32", machine.backends[::-1], 16)] + [("float16", ["flash_attn"], 256)] * machine.has_flash_attn
    found, wrong = {}, []
    for (dtype, names, block_size), looks_back in itertools.product(kinds, (True, False)):
        load = Load(machine.requests, block_size=block_size, looks_back=looks_back)
        common = {"device": machine.device, "dtype": dtype}
        soak = Soak(load, attention_backend=names[0], **common)
        for backend in names:
            eager_modes = (True, False) if machine.device == "cuda" and backend != "reference" else (True,)
            for eager, ahead in itertools.product(eager_modes, (False,) if looks_back else (False, True)):
                settings = {"attention_backend": backend, "enforce_eager": eager, "async_scheduling": ahead}
                report = soak.run(**settings, **common)
                name = f"{backend} {dtype} {mode(eager, ahead)}{' looking back' if looks_back else ''}"
                found[name] = report.counts()
                wrong += [f"{name}: {line}" for line in report.wrong]
                if report.requests >= 1000:
                    wrong += [f"{name}: no {kind}" for kind in report.unpressed()]
                    if ahead and report.steps_ahead < report.steps / 2:
                        wrong.append(f"{name}: {report.steps_ahead} of {report.steps} steps were launched ahead")
    if wrong:
        raise Disagreement("; ".join(wrong[:3]) + f" ({len(wrong)} in all)")
    return found


PARTS: dict[str, Callable[[Machine], dict[str, Any] | None]] = {
    "backends": backends_agree,
    "graphs": graphs_agree,
    "ranks": ranks_agree,
    "soak": soak_agrees,
}


def run_part(name: str, machine: Machine) -> dict[str, Any]:
    """Status ("agree", "not run", "disagree", "error"), seconds, and what was found or raised."""
    start = time.perf_counter()
    try:
        found = PARTS[name](machine)
        part = {"status": "not run" if found is None else "agree", "found": found}
    except Disagreement as error:
        part = {"status": "disagree", "found": str(error)}
    except Exception as error:
        traceback.print_exc()
        part = {"status": "error", "found": f"{type(error).__name__}: {error}"}
    return part | {"seconds": round(time.perf_counter() - start, 2)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--requests", type=int, default=2000, help="of the soak")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    machine = Machine(args.device, args.requests, args.prompts, args.max_tokens)

    parts = {}
    for name in args.parts:
        part = parts[name] = run_part(name, machine)
        print(f"{name:10}{part['status']:10}{part['seconds']:8.1f} s", flush=True)
        rows = part["found"].items() if isinstance(part["found"], dict) else []
        for row, numbers in rows:
            print(f"  {row:44}" + ", ".join(f"{key} {value}" for key, value in numbers.items()), flush=True)
        if isinstance(part["found"], str):
            print(part["found"], flush=True)
    result = record(
        "gpu_agreement",
        engine=None if args.parts == list(PARTS) else "-".join(args.parts),
        metric="seconds a part",
        samples=[part["seconds"] for part in parts.values()],
        workload={
            "model": "embedded",
            "device": args.device,
            "requests": args.requests,
            "prompts": args.prompts,
            "max_tokens": args.max_tokens,
            "seed": 0,
        },
        parts=parts,
    )
    print(write(result, args.out))
    return int(any(part["status"] in ("disagree", "error") for part in parts.values()))


if __name__ == "__main__":
    sys.exit(main())
