"""Start to first token: a fresh process each time, from its start to the first token of a prompt of 128.

Cold: the caches of compiled kernels (Triton, Inductor, CUDA, Numba, vLLM) are empty folders. Warm: the same folders, filled by the
process before. The checkpoint's files are in the operating system's cache either way. Samples are seconds; `phases` holds
where they went: python (the interpreter), import, engine (all that making the LLM takes; of it, in our engine, weights,
warm_up and capture), first_token.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from pathlib import Path

import engines
from common import record, write
from random_models import describe, model_folder, vocab_size

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "VLLM_CACHE_ROOT", "NUMBA_CACHE_DIR")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    engines.add_options(parser)
    parser.add_argument("--input-tokens", type=int, default=128, help="default %(default)s")
    parser.add_argument(
        "--repeats", type=int, default=3, help="cold starts, and as many warm ones (default %(default)s)"
    )
    args = parser.parse_args()
    if args.repeats < 1:
        raise SystemExit("--repeats must be at least 1")
    engines.check(args)

    startups: dict[str, list[dict]] = {"cold": [], "warm": []}
    with model_folder(args.model, seed=args.seed, tokenizer=args.engine == "nano-vllm") as folder:
        ids = min(engines.TOKEN_IDS, vocab_size(folder))
        prompts = engines.random_prompts(random.Random(args.seed), [args.input_tokens], ids)
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory(prefix="caches-") as caches:
                environment = {name: str(Path(caches) / name.lower()) for name in CACHES}
                for kind in startups:
                    print(f"{kind}:", end=" ", flush=True)
                    answer = engines.run(args, folder, [engines.Workload(prompts, [1], 1)], environment=environment)
                    startups[kind].append(answer["startup"])
    phases = list(startups["cold"][0])
    print(f"\n{'':5}" + "".join(f"{phase:>12}" for phase in phases) + "   (median seconds)")
    for kind, values in startups.items():
        medians = [statistics.median(value[phase] for value in values) for phase in phases]
        print(f"{kind:5}" + "".join(f"{value:12.2f}" for value in medians))
        result = record(
            "startup",
            metric="s to first token",
            samples=[value["total"] for value in values],
            engine=f"{engines.engine_name(args)}-{kind}",
            workload={
                "model": describe(args.model),
                "caches": kind,
                "input_tokens": args.input_tokens,
                "settings": engines.settings(args),
                "seed": args.seed,
            }
            | answer["info"],
            phases={phase: [value[phase] for value in values] for phase in phases},
            versions=engines.all_versions(args),
        )
        print(write(result, args.out).name)


if __name__ == "__main__":
    main()
