"""Write the tables of the readmes, NANO_VLLM_VS_VLLM.md and some guides from the measurements: ``make tables``.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``. What this engine reaches comes from the samples in
``benchmarks/results``, what its peers reach from ``benchmarks/peers.json``; every ratio is computed here, cut and not
rounded up, and called "behind" where it is below 1. Nothing in a table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = tuple(
    ROOT / name
    for name in (
        "README.md",
        "README.zh-CN.md",
        "NANO_VLLM_VS_VLLM.md",
        "helper/attention_kernels_guide.md",
        "helper/zh/attention_kernels_guide.md",
    )
    if (ROOT / name).is_file()
)
RESULTS = ROOT / "benchmarks" / "results"
PEERS = ROOT / "benchmarks" / "peers.json"
REGION = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table -->)", re.DOTALL)


def load(results: Path, name: str) -> dict | None:
    """The record of that file name, or None where it is not measured."""
    path = results / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def warm(record: dict) -> list[float]:
    """The samples without a cold first round: records since the harness keeps it apart have it under `cold`."""
    samples = record["samples"]
    return samples if "cold" in record or len(samples) == 1 else samples[1:]


def number(value: float) -> str:
    """15,545; 42.1; 2.41. An int is shown as it is: nobody measured its decimals."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def standing(ours: float, theirs: float, higher_is_better: bool) -> str:
    """How we stand to them: "1.35 x" or, where they are better, "behind: 0.66 x"."""
    ratio = ours / theirs if higher_is_better else theirs / ours
    cut = f"{math.floor(ratio * 100) / 100:.2f} x"
    return cut if ratio >= 1 else f"behind: {cut}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def origin(records: list[dict]) -> str:
    """Where the records come from: device, dates and commits, in one sentence."""
    if not records:
        return ""
    devices = sorted({record["device"]["name"] for record in records})
    days = sorted({record["date"][:10] for record in records})
    commits = sorted({record["commit"][:7] for record in records})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{' and '.join(devices)}, {when}, commit{'s' * (len(commits) > 1)} {', '.join(commits)}"


def speed(results: Path, peers: dict) -> str:
    """This engine beside its peers on one GPU."""
    rows = (
        ("bench, output tokens/s", "throughput-nanovllm-graphs", "throughput", True, warm),
        ("batch 1, tokens/s", "latency_bs1-nanovllm-graphs", "latency_bs1", True, tokens_per_second),
        ("batch 8, ms a step", "latency_bs8-nanovllm-graphs", "latency_bs8", False, warm),
        ("batch 32, ms a step", "latency_bs32-nanovllm-graphs", "latency_bs32", False, warm),
        ("batch 128, ms a step", "latency_bs128-nanovllm-graphs", "latency_bs128", False, warm),
        ("start to first token, cold caches, s", "startup-nanovllm-graphs-cold", "startup-cold", False, all_samples),
        ("start to first token, warm caches, s", "startup-nanovllm-graphs-warm", "startup-warm", False, all_samples),
    )
    lines, used = [], []
    for label, name, key, higher_is_better, samples in rows:
        record = load(results, name)
        figures = peers["figures"].get(key, {})
        ours = statistics.median(samples(record)) if record else None
        used += [record] if record else []
        cells = [label, "not measured yet" if ours is None else f"**{number(ours)}**"]
        for peer in ("nano-vllm", "vllm"):
            theirs = figures.get(peer)
            if theirs is None:
                cells += ["not measured", ""]
            else:
                cells += [number(theirs), standing(ours, theirs, higher_is_better) if ours else ""]
        roofline = figures.get("roofline")
        share = None
        if roofline and ours:
            share = ours / roofline if higher_is_better else roofline / ours
        cells.append("" if share is None else f"{math.floor(share * 100)} % of {number(roofline)}")
        lines.append(cells)
    head = ["", "this engine", "nano-vllm", "we are at", f"vLLM {peers['versions']['vllm']}", "we are at"]
    head.append("of what the hardware allows")
    conditions = peers["measured"]
    idle = load(results, "gpu_idle-nanovllm-graphs")
    if idle:
        used.append(idle)
    share = f" The GPU is idle {statistics.median(idle['samples']):.1%} of our bench's decode steps." if idle else ""
    return (
        table(head, lines)
        + f"\nOurs: {origin(used)}. Theirs: {conditions['device']}; measured by {conditions['by']}. All: "
        f"{conditions['model']}. Bench: {conditions['bench']}. Batches: {conditions['latency']}. Hardware limit: "
        f"{conditions['roofline']}.{share}\n"
    )


SPEEDS = (
    ("bench, output tokens/s", "throughput-nanovllm-graphs", True),
    ("batch 1, ms a step", "latency_bs1-nanovllm-graphs", False),
    ("batch 8, ms a step", "latency_bs8-nanovllm-graphs", False),
    ("batch 32, ms a step", "latency_bs32-nanovllm-graphs", False),
    ("batch 128, ms a step", "latency_bs128-nanovllm-graphs", False),
)


def by_commit(results: Path, peers: dict) -> str:
    """This engine at several commits on GPUs of one kind, and the last beside the first."""
    versions = ("-h200-276eb4a", "-h200-9a107e9", "-h200")
    rows, used, commits = [], [], []
    for label, name, higher_is_better in SPEEDS:
        records = [load(results, name + version) for version in versions]
        if None in records:
            continue
        used += records
        medians = [statistics.median(warm(record)) for record in records]
        commits = [record["commit"][:7] for record in records]
        rows.append([label, *map(number, medians[:-1]), f"**{number(medians[-1])}**"])
        rows[-1].append(standing(medians[-1], medians[0], higher_is_better))
    if not rows:
        return "Not measured yet.\n"
    head = ["one H200, our engine", *(f"commit {commit}" for commit in commits), f"beside {commits[0]}"]
    return table(head, rows) + f"\n{origin(used)}.\n"


def tokens_per_second(record: dict) -> list[float]:
    """The rates of a latency record, whose samples are milliseconds a step."""
    return [record["workload"]["batch"] * 1e3 / sample for sample in warm(record)]


def all_samples(record: dict) -> list[float]:
    return record["samples"]


def attention(results: Path, peers: dict) -> str:
    """Our decode kernel beside flash-attn, both measured in one run."""
    rows, used = [], []
    for label, name in (
        ("128 sequences of 1,024 tokens", "decode_attention"),
        ("128 sequences of 100 to 1,024", "decode_attention_ragged"),
    ):
        ours, theirs = load(results, f"{name}-triton"), load(results, f"{name}-flash_attn")
        if ours and theirs:
            used += [ours, theirs]
            a, b = (statistics.median(record["samples"]) for record in (ours, theirs))
            rows.append([label, f"**{number(a)}**", number(b), standing(a, b, True)])
    return (
        table(["paged decode attention, TB/s", "our Triton kernel", "flash-attn", "we are at"], rows)
        + f"\n{origin(used)}.\n"
    )


def parallel(results: Path, peers: dict) -> str:
    """Decode steps of two GPUs beside one."""
    rows, used = [], []
    for label, name in (
        ("Qwen3-8B's shape", "tensor_parallel-qwen3-8b-h200"),
        ("256 sequences of 1,024 tokens", "tensor_parallel-qwen3-8b-h200-batch256"),
        ("Qwen3-8B's shape, NCCL's sums", "tensor_parallel-qwen3-8b-h200-9a107e9"),
        ("256 sequences of 1,024 tokens, NCCL's sums", "tensor_parallel-qwen3-8b-h200-batch256-9a107e9"),
        ("Qwen3-8B's shape, NCCL's sums, not launched ahead", "tensor_parallel-qwen3-8b"),
        ("Qwen3-8B's shape, eager", "tensor_parallel-qwen3-8b-af3c580"),
        ("embedded model, eager", "tensor_parallel-embedded"),
    ):
        record = load(results, name)
        if record:
            used.append(record)
            one, two = (statistics.median(record[key]) for key in ("samples_of_one_process", "samples"))
            check = record["float32_check"]
            rows.append(
                [label, gpu(record), number(one), f"**{number(two)}**", standing(two, one, False)]
                + [f"{check['equal_prompts']} of {check['prompts']}" if check else "not compared"]
            )
    head = ["tensor parallel, 32 sequences of 128 tokens, ms a step", "GPU", "one", "two", "we are at"]
    head.append("prompts with equal tokens")
    return table(head, rows) + f"\n{origin(used)}.\n"


def gpu(record: dict) -> str:
    """The GPU's name without its vendor and memory."""
    return record["device"]["name"].removeprefix("NVIDIA ").split()[0]


def cpu(results: Path, peers: dict) -> str:
    """This engine beside transformers' generate on one CPU thread."""
    rows, used = [], []
    for kind, label in (("fixed", "each prompt gets 128 tokens"), ("natural", "each ends where the model ends it")):
        ours, theirs = (load(results, f"cpu_vs_transformers_{kind}-{name}") for name in ("nanovllm", "transformers"))
        if ours and theirs:
            used += [ours, theirs]
            ratio = statistics.median(a / b for a, b in zip(ours["samples"], theirs["samples"], strict=True))
            a, b = (statistics.median(record["samples"]) for record in (ours, theirs))
            rows.append([label, f"**{number(a)}**", number(b), standing(ratio, 1, True)])
    return (
        table(["16 ragged prompts, output tokens per CPU second", "this engine", "transformers", "we are at"], rows)
        + f"\nOne thread of {origin(used)}. The ratio is the median of those of interleaved runs.\n"
    )


def lines(results: Path, peers: dict) -> str:
    """How much there is to read."""
    counted = [count_lines(ROOT / "nanovllm"), count_lines(ROOT / "tests" / "nanovllm")]
    ours, tests = (f"about {round(value, -2):,}" for value in counted)
    theirs = peers["lines"]
    return table(
        ["", "this engine", "nano-vllm", "vLLM"],
        [
            ["lines of Python in the package", ours, *(f"{theirs[name]['lines']:,}" for name in ("nano-vllm", "vllm"))],
            [
                "counted",
                f"all of `nanovllm/`; its tests: {tests}",
                *(theirs[n]["counted"] for n in ("nano-vllm", "vllm")),
            ],
        ],
    )


def count_lines(folder: Path) -> int:
    """Lines of all Python files below a folder, empty ones and comments included."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py"))


TABLES = {
    "speed": speed,
    "by-commit": by_commit,
    "attention": attention,
    "parallel": parallel,
    "cpu": cpu,
    "lines": lines,
}

CHINESE = {
    "bench, output tokens/s": "bench，每秒输出 token 数",
    "batch 1, tokens/s": "批大小 1，token/s",
    "batch 8, ms a step": "批大小 8，每步 ms",
    "batch 32, ms a step": "批大小 32，每步 ms",
    "batch 128, ms a step": "批大小 128，每步 ms",
    "start to first token, cold caches, s": "启动到第一个 token，冷缓存，秒",
    "start to first token, warm caches, s": "启动到第一个 token，热缓存，秒",
    "not measured yet": "尚未测量",
    "not measured": "未测",
    "behind: ": "落后：",
    "this engine": "本引擎",
    "we are at": "我们是它的",
    "of what the hardware allows": "达到硬件上限的",
    "128 sequences of 1,024 tokens": "128 个序列，每个 1,024 个 token",
    "128 sequences of 100 to 1,024": "128 个序列，100 到 1,024 个 token",
    "paged decode attention, TB/s": "分页解码注意力，TB/s",
    "our Triton kernel": "我们的 Triton 核函数",
    "16 ragged prompts, output tokens per CPU second": "16 个长短不一的提示，每 CPU 秒输出 token 数",
    "each prompt gets 128 tokens": "每个提示生成 128 个 token",
    "each ends where the model ends it": "由模型自己决定何时结束",
    "One thread of ": "单线程，",
    "The ratio is the median of those of interleaved runs.": "比值是交替运行所得各比值的中位数。",
    "Ours: ": "我们：",
    " Theirs: ": " 它们：",
    " All: ": " 共同条件：",
    " Bench: ": " bench：",
    " Batches: ": " 批大小各行：",
    " Hardware limit: ": " 硬件上限：",
    "; measured by this project, before its engine was written; medians of warm runs, samples not kept": (
        "，由本项目在写引擎之前测得，取热运行的中位数，未保留样本"
    ),
    "Qwen3-0.6B's shape, random weights, bfloat16": "Qwen3-0.6B 的形状，随机权重，bfloat16",
    "256 sequences, seed 0, token ids 0 to 10,000, 100 to 1,024 tokens in and out (142,827 in, 133,966 out), "
    "temperature 0.6": (
        "256 个序列，种子 0，token id 0 到 10,000，输入和输出各 100 到 1,024 个 token（共输入 142,827、输出 133,966），温度 0.6"
    ),
    "128 tokens in, 256 out, all requests at once; wall time of the whole generate / 256, prefill included": (
        "输入 128、输出 256 个 token，所有请求同时到达；整个 generate 的墙上时间 / 256，含预填充"
    ),
    "reading the KV cache and the weights once a step at the 3.08 TB/s that this H100 reads, and the prefill's FLOPs": (
        "每步把 KV 缓存和权重各读一遍（按这块 H100 的 3.08 TB/s），加上预填充的运算量"
    ),
    ", commits ": "，提交 ",
    ", commit ": "，提交 ",
}
"""What the tables say in Chinese. A phrase that is missing here stays English."""


def in_chinese(text: str) -> str:
    """The text of a table in Chinese: phrases of `CHINESE`, and "40 % of 25,500" turned around."""
    for phrase in sorted(CHINESE, key=len, reverse=True):
        text = text.replace(phrase, CHINESE[phrase])
    text = re.sub(r"(\d+ %) of ([\d,.]+)", r"\2 的 \1", text)
    text = re.sub(r"(\d{4}-\d\d-\d\d) to (\d{4}-\d\d-\d\d)", r"\1 至 \2", text)
    text = re.sub(
        r"The GPU is idle ([\d.]+ ?%) of our bench's decode steps\.",
        r"我们的 bench 解码各步中 GPU 有 \1 的时间空闲。",
        text,
    )
    return re.sub(r"\. ?(?=[\u4e00-\u9fff])", "。", text)


def is_chinese(page: Path) -> bool:
    """Whether a page is written in Chinese."""
    return page.parent.name == "zh" or page.stem.endswith("zh-CN")


def rewritten(text: str, results: Path = RESULTS, peers: dict | None = None, chinese: bool = False) -> str:
    """The page's text with every table computed anew.

    Raises ValueError where a region names no table or is not closed.
    """
    peers = json.loads(PEERS.read_text(encoding="utf-8")) if peers is None else peers

    def fill(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"table:{match[2]} is unknown; allowed: {', '.join(TABLES)}")
        filled = TABLES[match[2]](results, peers)
        return f"{match[1]}\n{in_chinese(filled) if chinese else filled}\n{match[4]}"

    if len(REGION.findall(text)) != text.count("<!-- table:"):
        raise ValueError("a region <!-- table:NAME --> is not closed by <!-- /table -->")
    return REGION.sub(fill, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a table is stale")
    args = parser.parse_args()
    stale = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rewritten(before, chinese=is_chinese(page))
        if after != before:
            stale.append(page.name)
            if not args.check:
                page.write_text(after, encoding="utf-8")
    print(f"{'stale' if args.check else 'rewritten'}: {', '.join(stale) or 'none'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
