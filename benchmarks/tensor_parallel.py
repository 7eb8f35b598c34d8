"""Tensor parallel beside one process: the same tokens, and what a decode step costs.

Both draw greedy tokens for the same prompts with the same weights in float32 and must agree. Then each decodes
`--batch` sequences in `--dtype`; a sample is the time of one step in which every sequence decodes. On GPUs the ranks talk
through NCCL, one GPU each, on CPUs through gloo. Without `--shape` the model is the embedded one; with it the weights are
random: they cost the same time as trained ones.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from pathlib import Path

import torch
from common import RESULTS, record, write
from safetensors.torch import save_file

from nanovllm import LLM, SamplingParams
from nanovllm.attention import get_backend
from nanovllm.config import EMBEDDED_MODEL, ModelConfig
from nanovllm.models.qwen3 import Qwen3ForCausalLM

SHAPES = {
    "tiny": dict(layers=2, hidden=64, intermediate=160, heads=4, kv_heads=2, head_dim=32, vocab=199, tied=True),
    "Qwen3-0.6B": dict(
        layers=28, hidden=1024, intermediate=3072, heads=16, kv_heads=8, head_dim=128, vocab=151936, tied=True
    ),
    "Qwen3-8B": dict(
        layers=36, hidden=4096, intermediate=12288, heads=32, kv_heads=8, head_dim=128, vocab=151936, tied=False
    ),
}
"""Published shapes of the Qwen3 family (their config.json), and a tiny one to try the script."""


def write_random_checkpoint(shape: dict, folder: Path, seed: int) -> None:
    """A bfloat16 checkpoint with normal weights of variance 1 / fan-in, written layer by layer."""
    config = {
        "model_type": "qwen3",
        "num_hidden_layers": shape["layers"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "vocab_size": shape["vocab"],
        "tie_word_embeddings": shape["tied"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 40960,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        model = Qwen3ForCausalLM(ModelConfig.from_dict(config), get_backend("reference"), max_positions=1)
    packed = {
        "qkv_proj": {
            "q_proj": shape["heads"] * shape["head_dim"],
            "k_proj": shape["kv_heads"] * shape["head_dim"],
            "v_proj": shape["kv_heads"] * shape["head_dim"],
        },
        "gate_up_proj": {"gate_proj": shape["intermediate"], "up_proj": shape["intermediate"]},
    }
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(seed)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        *path, module, kind = name.split(".")
        file = files.setdefault(".".join(path[:3]), {})  # one file for each layer
        for published, rows in packed.get(module, {module: parameter.shape[0]}).items():
            size = (rows, *parameter.shape[1:])
            if parameter.dim() == 1:
                tensor = torch.ones(size)
            else:
                tensor = torch.randn(size, generator=generator, device=device) * parameter.shape[-1] ** -0.5
            file[".".join([*path, published, kind])] = tensor.to("cpu", torch.bfloat16)
    weight_map = {}
    for index, tensors in enumerate(files.values()):
        save_file(tensors, folder / f"model-{index:03}.safetensors")
        weight_map |= dict.fromkeys(tensors, f"model-{index:03}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def random_prompts(args: argparse.Namespace, vocab_size: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(args.seed)
    return torch.randint(vocab_size, (args.batch, args.prompt_tokens), generator=generator).tolist()


def greedy_tokens(folder: Path, size: int, args: argparse.Namespace) -> list[list[int]]:
    """float32 tokens: in bfloat16 the ranks' sums round differently, and near-ties fall differently."""
    settings = engine_settings(size, args) | {"dtype": "float32"}
    with LLM(folder, **settings) as llm:
        prompts = random_prompts(args, llm.model_config.vocab_size)
        params = SamplingParams(temperature=0, max_tokens=args.check_tokens, ignore_eos=True)
        outputs = llm.generate(prompts, params, use_tqdm=False)
    gc.collect()
    return [output["token_ids"] for output in outputs]


def decode_steps(folder: Path, size: int, args: argparse.Namespace) -> list[float]:
    """Milliseconds of each step in which the whole batch decodes, without the first `--warm-up` ones."""
    with LLM(folder, **engine_settings(size, args), dtype=args.dtype) as llm:
        params = SamplingParams(temperature=0, max_tokens=args.warm_up + args.steps + 1, ignore_eos=True)
        for prompt in random_prompts(args, llm.model_config.vocab_size):
            llm.add_request(prompt, params)
        samples = []
        while llm.has_unfinished:
            stats = llm.step()
            if stats.num_decode_tokens == args.batch and not stats.num_prefill_tokens:
                samples.append(stats.seconds * 1e3)
    gc.collect()
    return samples[args.warm_up :]


def engine_settings(size: int, args: argparse.Namespace) -> dict:
    length = args.prompt_tokens + max(args.check_tokens, args.warm_up + args.steps + 1) + 1
    return dict(
        tensor_parallel_size=size,
        device=args.device,
        max_num_seqs=args.batch,
        max_num_batched_tokens=max(args.batch * args.prompt_tokens, args.batch),
        max_model_len=length,
        num_kvcache_blocks=args.batch * -(-length // 16) + 1,
        kvcache_block_size=16,
        enable_prefix_caching=False,
        enforce_eager=True,  # steps that several processes share are eager, so one process is measured eager too
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=list(SHAPES), help="random weights of this shape; default: the embedded model"
    )
    parser.add_argument("--size", type=int, default=2, help="ranks, compared with one")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--check-tokens", type=int, default=32, help="greedy tokens a prompt that must agree")
    parser.add_argument("--steps", type=int, default=128, help="timed decode steps")
    parser.add_argument("--warm-up", type=int, default=16, help="steps before them")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", default="auto", help="of the timed steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = EMBEDDED_MODEL
        if args.shape:
            folder = Path(temporary)
            write_random_checkpoint(SHAPES[args.shape], folder, args.seed)
        expected, got = (greedy_tokens(folder, size, args) for size in (1, args.size))
        equal = sum(a == b for a, b in zip(expected, got, strict=True))
        print(f"float32 greedy tokens: {equal} of {args.batch} prompts draw the same {args.check_tokens}")
        samples = {size: decode_steps(folder, size, args) for size in (1, args.size)}
    on_gpu = torch.cuda.is_available() and args.device != "cpu"
    median = {size: statistics.median(values) for size, values in samples.items()}
    for size, values in samples.items():
        print(f"tensor_parallel_size {size}: {median[size]:8.3f} ms a decode step (best {min(values):.3f})")
    result = record(
        "tensor_parallel",
        metric="ms per decode step",
        samples=samples[args.size],
        workload={
            "model": args.shape or "embedded",
            "tensor_parallel_size": args.size,
            "group": "nccl" if on_gpu else "gloo",
            "batch": args.batch,
            "prompt_tokens": args.prompt_tokens,
            "dtype": args.dtype,
            "seed": args.seed,
        },
        samples_of_one_process=samples[1],
        median_of_one_process=median[1],
        speedup=median[1] / median[args.size],
        float32_check={"prompts": args.batch, "tokens": args.check_tokens, "equal_prompts": equal},
    )
    print(write(result, args.out))
    if equal < args.batch:
        raise SystemExit("the two drew different tokens")


if __name__ == "__main__":
    main()
