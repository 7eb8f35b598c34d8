"""Trains the tiny Qwen3 that ships with the course, from nothing, on the corpus that `data.py` generates.

    python training/train.py --minutes 7.5 --out training/out/model     # one GPU; the model that ships
    python training/train.py --quick --out training/out/quick           # a CPU, two minutes; an exercise

The time budget holds for everything: data, compilation, training, evaluation. The learning rate follows the clock, so
a run always ends annealed. Background processes generate the corpus while the GPU trains, and no example is repeated
unless they cannot keep up (the log and training_run.json say how many tokens were).
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import platform
import subprocess
import sys
import time
from collections import deque
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import transformers
from data import KINDS, examples
from safetensors.torch import save_file
from tokenizer import END_OF_TEXT, IM_START, VOCAB_SIZE, save_tokenizer, train_tokenizer
from tokenizers import Tokenizer
from torch.nn import functional as F
from tqdm import tqdm
from transformers import Qwen3Config, Qwen3ForCausalLM

NO_LOSS = 4096  # added to the id of a token that is read but not learned: system and user turns
IGNORE = -100
# The published form of 2025, which transformers 4.51 and every later version reads.
ARCHITECTURE = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 640,
    "max_position_embeddings": 2048,
    "max_window_layers": 6,
    "model_type": "qwen3",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCAB_SIZE,
}
GENERATION = {
    "bos_token_id": 0,
    "do_sample": True,
    "eos_token_id": [2, 0],
    "pad_token_id": 0,
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
}


# ---------------------------------------------------------------- data


def mark(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Adds NO_LOSS to the tokens of system and user turns.

    Args:
        ids: int16 (n,), documents one after the other, each ending with <|endoftext|>.
    """
    start, end_of_text = tokenizer.token_to_id(IM_START), tokenizer.token_to_id(END_OF_TEXT)
    assistant = tokenizer.encode("assistant").ids[0]
    is_start = ids == start
    switch = np.flatnonzero(is_start | (ids == end_of_text))
    if switch.size == 0:
        return ids
    following = np.append(ids[1:], 0)[switch]
    learn_from = ~is_start[switch] | (following == assistant)
    last = np.searchsorted(switch, np.arange(ids.size), side="right") - 1
    learned = np.where(last >= 0, learn_from[np.maximum(last, 0)], True)
    return np.where(learned, ids, ids + NO_LOSS).astype(np.int16)


def pack(stream, tokenizer: Tokenizer, rows: int, row_length: int) -> np.ndarray:
    """Fills `rows` rows with documents, one after the other; each row begins with a new document.

    Returns: int16 (rows, row_length), ids with NO_LOSS added where nothing is to be learned.
    """
    out = np.empty((rows, row_length), dtype=np.int16)
    queue: deque[list[int]] = deque()
    for r in range(rows):
        row: list[int] = []
        while len(row) < row_length:
            if not queue:
                batch = [example.document() for example in islice(stream, 256)]
                queue.extend(encoding.ids for encoding in tokenizer.encode_batch(batch))
            row += queue.popleft()
        out[r] = mark(np.array(row[:row_length], dtype=np.int16), tokenizer)
    return out


def make_shard(index: int, seed: int, tokenizer_json: str, rows: int, row_length: int) -> np.ndarray:
    """Shard `index` of the training corpus; a pure function of its arguments."""
    tokenizer = _tokenizer(tokenizer_json)
    return pack(examples(seed * 1_000_003 + index + 1), tokenizer, rows, row_length)


_cached: dict[str, Tokenizer] = {}


def _tokenizer(tokenizer_json: str) -> Tokenizer:
    if tokenizer_json not in _cached:
        _cached[tokenizer_json] = Tokenizer.from_str(tokenizer_json)
    return _cached[tokenizer_json]


class Shards:
    """Hands out the shards in order. With workers they are made ahead of need; a late one is replaced by an old one."""

    def __init__(self, make, workers: int):
        self.make, self.workers = make, workers
        self.next_index = 0
        self.fresh = self.replayed = 0  # shards
        self.kept: list[np.ndarray] = []
        self.pending: deque = deque()
        self.pool = None
        if workers:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
            self.pool = mp.get_context("spawn").Pool(workers)
            self._order()

    def _order(self) -> None:
        while len(self.pending) < 3 * self.workers:
            self.pending.append(self.pool.apply_async(self.make, (self.next_index,)))
            self.next_index += 1

    def take(self) -> np.ndarray:
        if self.pool is None:
            self.next_index += 1
            self.fresh += 1
            return self.make(self.next_index - 1)
        if self.kept and not self.pending[0].ready():
            self.replayed += 1
            return self.kept[self.replayed % len(self.kept)]
        shard = self.pending.popleft().get()
        self._order()
        self.fresh += 1
        self.kept.append(shard)
        return shard

    def close(self) -> None:
        if self.pool:
            self.pool.terminate()
            self.pool.join()


# ---------------------------------------------------------------- model


def build_model(seed: int) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3Config.from_dict({k: v for k, v in ARCHITECTURE.items() if k != "torch_dtype"})
    config._attn_implementation = "sdpa"
    model = Qwen3ForCausalLM(config).float()
    scale = 1 / math.sqrt(2 * config.num_hidden_layers)  # keeps the residual stream's variance at the start (GPT-2)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(scale)
            layer.mlp.down_proj.weight.mul_(scale)
    return model


def loss_sum(model: torch.nn.Module, marked: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy (nats) and the number of learned tokens.

    Args:
        marked: int16 (batch, length) from `pack`.
    """
    marked = marked.long()
    ids = torch.where(marked >= NO_LOSS, marked - NO_LOSS, marked)
    labels = torch.where(marked >= NO_LOSS, IGNORE, marked)
    labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE)], dim=1)
    # No mask: every row is full, and scaled_dot_product_attention is causal by itself then.
    logits = model(input_ids=ids, attention_mask={"full_attention": None}, use_cache=False).logits
    total = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total, (labels != IGNORE).sum()


def count_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def save_model(model: Qwen3ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the folder as Qwen3's are published: bf16 safetensors, no lm_head because it is tied."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(ARCHITECTURE, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)


@torch.no_grad()
def held_out_losses(model, loss_fn, tokenizer: Tokenizer, rows: int, length: int, device, seed: int = 0) -> dict:
    """Mean loss in nats a learned token on the held-out split, by kind and for the training mix ("mix")."""
    losses = {}
    for kind in (None, *KINDS):
        batch = pack(examples(seed, "heldout", kind), tokenizer, rows, length)
        total, learned = loss_fn(model, torch.from_numpy(batch).to(device))
        losses[kind or "mix"] = {"loss": round(total.item() / max(1, learned.item()), 4), "tokens": int(learned.item())}
    return losses


# ---------------------------------------------------------------- training


def learning_rate(progress: float, step: int, peak: float, warmup_steps: int) -> float:
    """Linear warm-up by steps, then half a cosine over `progress` (0 to 1 of the time budget), down to 1 % of peak."""
    warm = min(1.0, (step + 1) / warmup_steps)
    return peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def optimizer_for(model: torch.nn.Module, lr: float, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=device.type == "cuda")


def command_output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def device_facts(device: torch.device) -> dict:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
        return {
            "name": properties.name,
            "driver": command_output(*query),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "count": 1,
        }
    return {"name": platform.processor() or platform.machine(), "driver": None, "memory_gib": None, "count": 1}


def train(args: argparse.Namespace) -> dict:
    """Trains, writes the model folder `args.out` and returns what training_run.json says."""
    started = time.perf_counter()
    deadline = started + args.minutes * 60
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    gpu = device.type == "cuda"
    if gpu:
        torch.set_float32_matmul_precision("high")

    def say(text: str) -> None:
        tqdm.write(f"[{time.perf_counter() - started:6.1f} s] {text}")
        sys.stdout.flush()

    say(f"{device_facts(device)['name']}, torch {torch.__version__}, transformers {transformers.__version__}")
    tokenizer = train_tokenizer(args.seed, args.tokenizer_documents)
    say(f"tokenizer: {tokenizer.get_vocab_size()} entries")
    steps_a_shard = 16 if args.workers else 1
    make = partial(
        make_shard,
        seed=args.seed,
        tokenizer_json=tokenizer.to_str(),
        rows=args.batch_rows * args.length * steps_a_shard // args.long_length,
        row_length=args.long_length,
    )
    shards = Shards(make, args.workers)
    try:
        model = build_model(args.seed).to(device).train()
        parameters = count_parameters(model)
        say(f"model: {parameters:,} parameters; batches of {args.batch_rows} x {args.length} tokens")
        optimizer = optimizer_for(model, args.lr, device)
        autocast = partial(torch.autocast, device_type=device.type, dtype=torch.bfloat16, enabled=gpu)

        def forward(model, marked):
            with autocast():
                return loss_sum(model, marked)

        loss_fn, compiled = forward, False
        rows_a_step = args.batch_rows * args.length // args.long_length  # rows of a shard, each of long_length
        shard = torch.from_numpy(shards.take()).to(device)
        say("first shard of data is here")
        if args.compile and gpu:
            try:
                loss_fn = torch.compile(forward, dynamic=False)
                for length in {args.length, args.long_length}:
                    loss_fn(model, shard[:rows_a_step].view(-1, length))[0].backward()
                    torch.cuda.synchronize()
                    say(f"compiled for rows of {length} tokens")
                compiled = True
            except Exception as error:  # whatever the compiler throws, eager mode trains too
                loss_fn = forward
                say(f"torch.compile failed, training goes on without it: {type(error).__name__}: {str(error)[:300]}")
            optimizer.zero_grad(set_to_none=True)

        reserve = args.reserve_seconds
        train_start = time.perf_counter()
        span = max(1e-6, deadline - reserve - train_start)
        step = tokens = in_shard = 0
        curve: list[dict] = []
        window: list[torch.Tensor] = []
        window_start, window_tokens = train_start, 0
        bar = tqdm(total=round(span), unit="s", disable=not sys.stderr.isatty(), desc="training")
        while True:
            now = time.perf_counter()
            progress = (now - train_start) / span if args.steps is None else step / args.steps
            if progress >= 1:
                break
            if (in_shard + 1) * rows_a_step > shard.shape[0]:
                shard, in_shard = torch.from_numpy(shards.take()).to(device, non_blocking=True), 0
            length = args.length if progress < args.long_from else args.long_length
            batch = shard[in_shard * rows_a_step : (in_shard + 1) * rows_a_step].view(-1, length)
            in_shard += 1
            lr = learning_rate(progress, step, args.lr, args.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            total, learned = loss_fn(model, batch)
            loss = total / learned.clamp(min=1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            tokens += batch.numel()
            window_tokens += batch.numel()
            window.append(loss.detach())
            if len(window) >= args.log_every:
                mean = torch.stack(window).mean().item()  # waits for the device, so the clock stays honest
                if not math.isfinite(mean):
                    raise RuntimeError(f"the loss is {mean} at step {step}; lower --lr (it was {args.lr})")
                now = time.perf_counter()
                rate = window_tokens / (now - window_start)
                curve.append(
                    {"step": step, "tokens": tokens, "seconds": round(now - started, 1), "loss": round(mean, 4)}
                )
                if len(curve) % args.say_every == 1 or args.say_every == 1:
                    say(
                        f"step {step:6d}  {tokens / 1e6:8.1f} M tokens  loss {mean:.4f}  lr {lr:.2e}  {rate / 1e3:8.1f} k tokens/s"
                    )
                bar.n = round(now - train_start)
                bar.refresh()
                window, window_start, window_tokens = [], now, 0
        bar.close()
        if window:
            mean = torch.stack(window).mean().item()
            seconds = round(time.perf_counter() - started, 1)
            curve.append({"step": step, "tokens": tokens, "seconds": seconds, "loss": round(mean, 4)})
        train_seconds = time.perf_counter() - train_start
        say(
            f"trained {step} steps, {tokens / 1e6:.1f} M tokens in {train_seconds:.1f} s, last loss {curve[-1]['loss']:.4f}"
        )
    finally:
        shards.close()

    save_model(model, tokenizer, args.out)
    model.eval()
    losses = held_out_losses(model, forward, tokenizer, args.eval_rows, args.length, device)
    say("held-out losses: " + ", ".join(f"{kind} {entry['loss']:.3f}" for kind, entry in losses.items()))
    keep = max(1, len(curve) // 200)
    run = {
        "schema": 1,
        "name": "training_run",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": os.environ.get("TRAINING_COMMIT") or command_output("git", "rev-parse", "HEAD"),
        "command": args.command or "python " + " ".join(sys.argv),
        "device": device_facts(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cuda": torch.version.cuda,
        },
        "settings": {
            "seed": args.seed, "minutes": args.minutes, "steps": args.steps, "batch_rows": args.batch_rows,
            "length": args.length, "long_length": args.long_length, "long_from": args.long_from, "lr": args.lr, "warmup_steps": args.warmup_steps, "weight_decay": 0.1,
            "betas": [0.9, 0.95], "clip": 1.0, "compiled": compiled, "workers": args.workers, "quick": args.quick,
            "precision": "bf16 autocast" if gpu else "fp32",
        },
        "parameters": parameters,
        "steps": step,
        "tokens": tokens,
        "train_seconds": round(train_seconds, 1),
        "tokens_per_second": round(tokens / train_seconds),
        "shards_fresh": shards.fresh,
        "shards_replayed": shards.replayed,
        "loss_curve": curve[keep - 1 :: keep],
        "final_loss": curve[-1]["loss"],
        "held_out_loss": losses,
        "wall_seconds": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    (args.out / "training_run.json").write_text(json.dumps(run, indent=1) + "\n")
    say(f"wrote {args.out} ({(args.out / 'model.safetensors').stat().st_size:,} bytes of weights)")
    return run


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model and training_run.json")
    parser.add_argument("--minutes", type=float, help="time for everything (default 7.5; 2 with --quick)")
    parser.add_argument("--steps", type=int, help="train for this many steps instead of by the clock")
    parser.add_argument(
        "--quick", action="store_true", help="small batches for a CPU: see a loss go down in two minutes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cuda or cpu; default: a GPU if there is one")
    parser.add_argument("--lr", type=float, help="peak learning rate (default 3e-3)", default=3e-3)
    parser.add_argument("--batch-rows", type=int, help="rows a step (default 128; 8 with --quick)")
    parser.add_argument("--length", type=int, help="tokens a row (default 1024; 256 with --quick)")
    parser.add_argument("--long-length", type=int, help="tokens a row at the end (default: 2 x length)")
    parser.add_argument("--long-from", type=float, default=0.8, help="share of the run after which rows are long")
    parser.add_argument("--warmup-steps", type=int, help="default 200; 30 with --quick")
    parser.add_argument("--workers", type=int, help="processes that generate data (default: cores - 2; 0 with --quick)")
    parser.add_argument("--tokenizer-documents", type=int, help="default 30,000; 10,000 with --quick")
    parser.add_argument("--eval-rows", type=int, help="held-out rows a kind (default 128; 8 with --quick)")
    parser.add_argument("--log-every", type=int, default=10, help="steps between two points of the loss curve")
    parser.add_argument("--say-every", type=int, help="points between two printed lines (default 10; 1 with --quick)")
    parser.add_argument("--reserve-seconds", type=float, help="time kept for saving and evaluation (default 12)")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--command", help="the command to record, where sys.argv says it wrongly")
    args = parser.parse_args(argv)
    quick = args.quick
    defaults = {
        "minutes": 2.0 if quick else 7.5,
        "batch_rows": 8 if quick else 128,
        "length": 256 if quick else 1024,
        "warmup_steps": 30 if quick else 200,
        "workers": 0 if quick else max(1, (os.cpu_count() or 2) - 2),
        "tokenizer_documents": 10_000 if quick else 30_000,
        "eval_rows": 8 if quick else 128,
        "say_every": 1 if quick else 10,
        "reserve_seconds": 12.0,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.long_length is None:
        args.long_length = 2 * args.length
    if args.long_length % args.length or args.batch_rows * args.length % args.long_length:
        parser.error(f"--long-length must be a multiple of --length and divide a batch, got {args.long_length}")
    for name in ("batch_rows", "length", "warmup_steps", "eval_rows", "minutes", "log_every", "say_every"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {getattr(args, name)}")
    return args


if __name__ == "__main__":
    train(parse())
