"""The engine from a terminal: `python -m nanovllm generate | chat | bench`."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence

from nanovllm.config import ATTENTION_BACKENDS, DEVICES, DTYPES, EMBEDDED_MODEL
from nanovllm.llm import LLM
from nanovllm.sampling_params import SamplingParams


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nanovllm", description="Run a Qwen3 language model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    generate = commands.add_parser("generate", help="complete one prompt or several", description=complete.__doc__)
    generate.add_argument("prompt", nargs="+", help="a text to go on with; quote it if it has spaces")
    _add_engine_options(generate)
    _add_sampling_options(generate, max_tokens=128)

    talk = commands.add_parser("chat", help="talk with the model", description=chat.__doc__)
    talk.add_argument("--system", help="a message that tells the model how to behave")
    _add_engine_options(talk)
    _add_sampling_options(talk, max_tokens=512)

    speed = commands.add_parser("bench", help="measure the throughput", description=bench.__doc__)
    speed.add_argument("--num-prompts", type=int, default=32, help="requests, all there at once (default %(default)s)")
    for name, what in (("input", "prompt"), ("output", "generated")):
        help_text = f"fewest and most {what} tokens of a request (default 16 128)"
        speed.add_argument(
            f"--{name}-tokens", type=int, nargs=2, default=(16, 128), metavar=("LOW", "HIGH"), help=help_text
        )
    speed.add_argument("--temperature", type=float, default=0.6, help="default %(default)s")
    _add_engine_options(speed)
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model", default=str(EMBEDDED_MODEL), help="folder or hub name (default: the tiny model inside)"
    )
    group.add_argument("--device", choices=DEVICES, default="auto")
    group.add_argument("--dtype", choices=DTYPES, default="auto")
    group.add_argument("--attention-backend", choices=ATTENTION_BACKENDS, default="auto")
    group.add_argument("--max-model-len", type=int, default=4096, help="most tokens of one sequence")
    group.add_argument("--seed", type=int, default=0, help="the same seed draws the same text (default %(default)s)")


def _add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temperature", type=float, default=0.8, help="0 takes the likeliest token (default %(default)s)"
    )
    group.add_argument("--top-k", type=int, default=0, help="draw from the k likeliest tokens; 0 is all")
    group.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest tokens that reach this probability"
    )
    group.add_argument(
        "--max-tokens", type=int, default=max_tokens, help="most tokens to generate (default %(default)s)"
    )
    group.add_argument("--stop", action="append", help="end before this text; may be given several times")


def _engine(args: argparse.Namespace) -> LLM:
    names = ("device", "dtype", "attention_backend", "max_model_len", "seed")
    return LLM(args.model, **{name: getattr(args, name) for name in names})


def _sampling(args: argparse.Namespace) -> SamplingParams:
    names = ("temperature", "top_k", "top_p", "max_tokens", "stop")
    return SamplingParams(**{name: getattr(args, name) for name in names})


def complete(args: argparse.Namespace) -> None:
    """Complete the prompts. One prompt is printed as it grows; several run together and are printed in order."""
    params = _sampling(args)
    with _engine(args) as llm:
        if len(args.prompt) == 1:
            print(args.prompt[0], end="")
            for piece in llm.stream(args.prompt[0], params):
                print(piece["text"], end="", flush=True)
            print()
            return
        outputs = llm.generate(args.prompt, params)
        for prompt, output in zip(args.prompt, outputs, strict=True):
            print(f"--- {prompt}\n{prompt}{output['text']}\n({output['finish_reason']})")


def chat(args: argparse.Namespace) -> None:
    """Talk with the model. An empty line or Ctrl-D ends the conversation."""
    params = _sampling(args)
    messages = [{"role": "system", "content": args.system}] if args.system else []
    with _engine(args) as llm:
        print("An empty line or Ctrl-D ends the conversation.", file=sys.stderr)
        while True:
            try:
                question = input("you> ").strip()
            except EOFError:
                question = ""
            if not question:
                return
            messages.append({"role": "user", "content": question})
            answer = ""
            for piece in llm.stream(llm.apply_chat_template(messages), params):
                print(piece["text"], end="", flush=True)
                answer += piece["text"]
            print()
            messages.append({"role": "assistant", "content": answer})


def bench(args: argparse.Namespace) -> None:
    """Generate for random prompts of random lengths, twice: the first round also warms up."""
    draw = random.Random(args.seed)
    (low, high), (shortest, longest) = args.input_tokens, args.output_tokens
    if not (1 <= low <= high and 1 <= shortest <= longest):
        raise ValueError("--input-tokens and --output-tokens must be LOW HIGH with 1 <= LOW <= HIGH.")
    with _engine(args) as llm:
        vocab_size = llm.model_config.vocab_size
        prompts = [
            [draw.randrange(vocab_size) for _ in range(draw.randint(low, high))] for _ in range(args.num_prompts)
        ]
        params = [
            SamplingParams(temperature=args.temperature, max_tokens=draw.randint(shortest, longest), ignore_eos=True)
            for _ in prompts
        ]
        num_input, num_output = sum(map(len, prompts)), sum(param.max_tokens for param in params)
        print(f"{args.num_prompts} requests, {num_input} prompt tokens, {num_output} tokens to generate")
        for name in ("first", "warm"):
            # Other prompts in the second round, so that none is found in the prefix cache.
            shifted = [[(token + (name == "warm")) % vocab_size for token in prompt] for prompt in prompts]
            start = time.perf_counter()
            llm.generate(shifted, params)
            seconds = time.perf_counter() - start
            print(f"{name:5} {seconds:8.2f} s {num_output / seconds:10.0f} output tokens/s")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; bad arguments end with one line on stderr and exit code 2."""
    args = build_parser().parse_args(argv)
    command = {"generate": complete, "chat": chat, "bench": bench}[args.command]
    try:
        command(args)
    except (ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
