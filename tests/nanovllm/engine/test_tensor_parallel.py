"""Several processes share a model: the same tokens as one, and nothing left behind, whoever dies first.

The engines run on the CPU, over gloo. Greedy tokens are compared with transformers', sampled ones with one process's.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from serving import Checkpoint, check_idle, tokens
from tiny import make_checkpoint, random_prompts

from nanovllm import LLM, SamplingParams
from nanovllm.config import EngineConfig, ModelConfig
from nanovllm.engine.model_runner import ModelRunner
from nanovllm.engine.tensor_parallel import SEGMENT_BYTES, SharedMemoryCommands, make_group, pack
from nanovllm.utils.context import TensorParallel

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch is built without gloo"),
]

GREEDY = SamplingParams(temperature=0, max_tokens=12)
LONGER = SamplingParams(temperature=0, max_tokens=20)
SECONDS = 30  # until a loss must be noticed: far below any timeout of gloo, far above a busy machine's pauses


@pytest.fixture(scope="module")
def four_heads(tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("four")
    return Checkpoint(make_checkpoint(folder, tie_word_embeddings=False, attention_bias=True))


@pytest.fixture(scope="module")
def eight_heads(tmp_path_factory) -> Checkpoint:
    """Eight heads over two KV heads: four ranks hold each KV head twice."""
    return Checkpoint(make_checkpoint(tmp_path_factory.mktemp("eight"), seed=1, num_attention_heads=8))


def make_llm(checkpoint: Checkpoint, size: int, **config) -> LLM:
    return LLM(checkpoint.folder, device="cpu", tensor_parallel_size=size, **config)


TIGHT = dict(max_num_batched_tokens=20, max_num_seqs=6)


@pytest.fixture(scope="module")
def two_ranks(four_heads) -> Iterator[LLM]:
    with make_llm(four_heads, 2, kvcache_block_size=16, num_kvcache_blocks=12, **TIGHT) as llm:
        yield llm


@pytest.fixture(scope="module")
def four_ranks(eight_heads) -> Iterator[LLM]:
    with make_llm(eight_heads, 4, kvcache_block_size=32, num_kvcache_blocks=6, async_scheduling=True, **TIGHT) as llm:
        yield llm


@pytest.fixture(scope="module")
def wide(four_heads) -> Iterator[LLM]:
    with make_llm(four_heads, 2, kvcache_block_size=64, max_num_batched_tokens=60_000) as llm:
        yield llm


def check_greedy(
    llm: LLM, checkpoint: Checkpoint, prompts: list[list[int]], params: SamplingParams = GREEDY
) -> list[dict]:
    outputs = llm.generate(prompts, params, use_tqdm=False)
    assert tokens(outputs) == checkpoint.greedy(prompts, params.max_tokens)
    check_idle(llm)
    return outputs


def children() -> list[psutil.Process]:
    """This process's children, but for the one that multiprocessing keeps until the end."""
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "resource_tracker" not in " ".join(process.cmdline())]


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # an orphan waits for init to take note of its end
    except psutil.NoSuchProcess:
        return False


def listening_ports(process: psutil.Process) -> set[int]:
    connections = getattr(process, "net_connections", process.connections)("tcp")
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN}


def shared_files(llm: LLM) -> list[Path]:
    """The engine's segment and semaphores as /dev/shm shows them."""
    commands = llm.model_runner._workers.commands
    semaphores = commands._sent + commands._taken
    names = [commands._segment.name] + ["sem." + s._semlock.name.strip("/") for s in semaphores]
    return [Path("/dev/shm") / name.strip("/") for name in names]


def workers_of(llm: LLM) -> list:
    return llm.model_runner._workers._processes


# The same tokens


def test_two_ranks_draw_transformers_tokens(two_ranks, four_heads):
    outputs = check_greedy(two_ranks, four_heads, random_prompts(5, 20, 60, seed=2), LONGER)
    assert sum(output["metrics"]["preemptions"] for output in outputs) > 0
    (shared,) = random_prompts(1, 40, 40, seed=1)
    check_greedy(two_ranks, four_heads, [[*shared, 5], [*shared, 6]])
    outputs = check_greedy(two_ranks, four_heads, [[*shared, 9]])
    assert outputs[0]["metrics"]["prefix_cached_tokens"] == 32


def test_four_ranks_with_two_kv_heads_draw_transformers_tokens(four_ranks, eight_heads):
    outputs = check_greedy(four_ranks, eight_heads, random_prompts(5, 20, 60, seed=2), LONGER)
    assert sum(output["metrics"]["preemptions"] for output in outputs) > 0
    attention = four_ranks.model_runner.model.attention_layers()[0]
    assert (attention.num_heads, attention.num_kv_heads) == (2, 1)


def test_ranks_run_ahead_where_they_are_asked_to(two_ranks, four_ranks):
    """The tokens of both engines are checked above and below."""
    assert four_ranks.async_scheduling and not two_ranks.async_scheduling
    assert four_ranks.model_runner.rows is None and four_ranks.model_runner.graphs is None


def test_a_message_over_a_mebibyte(wide, four_heads, monkeypatch):
    sizes, send = [], wide.model_runner._workers.commands.send
    monkeypatch.setattr(
        wide.model_runner._workers.commands, "send", lambda m, check: (sizes.append(len(m)), send(m, check))
    )
    prompts = random_prompts(120, 480, 480, seed=4)
    params = SamplingParams(temperature=0, max_tokens=2)
    outputs = wide.generate(prompts, params, use_tqdm=False)
    assert max(sizes) > 2**20
    assert tokens(outputs[:4]) == four_heads.greedy(prompts[:4], 2)
    with make_llm(four_heads, 1, max_num_batched_tokens=60_000) as one:
        assert tokens(outputs) == tokens(one.generate(prompts, params, use_tqdm=False))


def test_sampled_tokens_and_logprobs_are_one_process_s(two_ranks, four_ranks, four_heads, eight_heads):
    prompts = random_prompts(3, 1, 40, seed=5)
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=3, max_tokens=10, logprobs=2, repetition_penalty=1.1, n=2)
    for llm, checkpoint in ((two_ranks, four_heads), (four_ranks, eight_heads)):
        with make_llm(checkpoint, 1) as one:
            expected = one.generate(prompts, params, use_tqdm=False)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for output, wanted in zip(outputs, expected, strict=True):
            assert [o["token_ids"] for o in output["outputs"]] == [o["token_ids"] for o in wanted["outputs"]]
            for got, known in zip(output["logprobs"], wanted["logprobs"], strict=True):
                assert got == pytest.approx(known, abs=1e-4)


def test_engines_side_by_side(two_ranks, four_ranks, four_heads, eight_heads):
    """Their steps alternate; none hears what the other says."""
    prompts = random_prompts(3, 5, 30, seed=6)
    streams = [llm.stream(prompts[0], GREEDY) for llm in (two_ranks, four_ranks)]
    pieces = [[], []]
    for a, b in zip(*streams, strict=True):
        pieces[0] += a["token_ids"]
        pieces[1] += b["token_ids"]
    assert pieces == [c.greedy(prompts[:1], 12)[0] for c in (four_heads, eight_heads)]
    assert {p.pid for p in workers_of(two_ranks)}.isdisjoint(p.pid for p in workers_of(four_ranks))


def test_all_ranks_have_the_blocks_of_the_least(four_heads):
    """Two ranks as two threads of this process, one with half the other's memory."""
    store, runners = dist.HashStore(), {}
    model_config = ModelConfig.from_folder(four_heads.folder)

    def make(rank: int, cpu_kvcache_gib: float) -> None:
        group = make_group(store, rank, 2, torch.device("cpu"), local=True, timeout=timedelta(seconds=SECONDS))
        config = EngineConfig(device="cpu", max_model_len=512, cpu_kvcache_gib=cpu_kvcache_gib)
        tp = TensorParallel(rank, 2, group)
        runners[rank] = ModelRunner(config, model_config, four_heads.folder, 512, tp)

    kib = 2.0**-20
    threads = [threading.Thread(target=make, args=(rank, 100 * kib * (rank + 1))) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # One KV head a rank: a block takes 2 (K and V) * 2 layers * 16 tokens * 16 dimensions * 4 bytes = 4 KiB.
    assert [runners[rank].num_kvcache_blocks for rank in range(2)] == [25, 25]


# The messages themselves


def test_messages_of_any_size_arrive_whole_and_in_order():
    commands = SharedMemoryCommands(get_context("spawn"), 2)
    messages = [bytes([i % 256]) * size for i, size in enumerate((1, 0x400, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 1, 7))]
    received: dict[int, list[bytes]] = {1: [], 2: []}

    def read(rank: int) -> None:
        for _ in messages:
            time.sleep(0.01 * rank)  # a slow reader: nothing may be overwritten before it has read
            received[rank].append(commands.receive(rank))

    readers = [threading.Thread(target=read, args=(rank,)) for rank in received]
    for reader in readers:
        reader.start()
    for message in messages:
        commands.send(message, check=lambda: None)
    for reader in readers:
        reader.join()
    commands.close()
    assert received == {1: messages, 2: messages}


def test_a_step_is_sent_as_small_arrays():
    size = len(pack("forward_shard", torch.arange(1000)))
    assert 8000 < size < 8300


# Bad settings


@pytest.mark.parametrize(("size", "named"), [(3, "num_attention_heads"), (8, "num_attention_heads"), (5, "heads")])
def test_a_size_that_does_not_divide_is_refused_before_anything_starts(four_heads, size, named, monkeypatch):
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", lambda self: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match=named) as info:
        make_llm(four_heads, size)
    assert f"tensor_parallel_size ({size})" in str(info.value)


def test_more_ranks_than_gpus_are_refused(four_heads, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"tensor_parallel_size \(2\) must be at most the number of GPUs here, 1"):
        LLM(four_heads.folder, tensor_parallel_size=2)


def test_another_number_of_ranks_than_torchrun_s_is_refused(four_heads, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match=r"tensor_parallel_size \(2\) must be 1 or the number of processes.* 4"):
        make_llm(four_heads, 2)


def test_an_error_of_rank_0_itself_is_raised_as_it_is(four_heads):
    before = [process.pid for process in children()]
    with pytest.raises(ValueError, match="cpu_kvcache_gib"):
        make_llm(four_heads, 2, cpu_kvcache_gib=1e-7)
    assert_no_workers_but(before)


# Losses


def assert_no_workers_but(others: list[int]) -> None:
    deadline = time.monotonic() + SECONDS
    while {process.pid for process in children()} - set(others) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert {process.pid for process in children()} <= set(others)


@pytest.fixture
def engine(four_heads):
    """Makes an engine that the test breaks, and afterwards looks for what it may have left."""
    gc.collect()
    before = [process.pid for process in children()]
    ports = listening_ports(psutil.Process())
    threads = threading.active_count()
    files: list[Path] = []

    def make(size: int, **config) -> LLM:
        llm = make_llm(four_heads, size, **config)
        files.extend(shared_files(llm))
        assert len(children()) == len(before) + size - 1
        assert listening_ports(psutil.Process()) > ports
        assert all(path.exists() for path in files) or not Path("/dev/shm").exists()
        return llm

    yield make
    assert_no_workers_but(before)
    gc.collect()
    assert [path for path in files if path.exists()] == []
    assert listening_ports(psutil.Process()) == ports
    assert threading.active_count() == threads


def check_closed(llm: LLM, reason: str) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match=f"this engine was closed, because .*{reason}"):
            llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    check_idle(llm)
    llm.close()


def test_closing_leaves_nothing(engine):
    llm = engine(2)
    llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    llm.close()
    llm.close()
    with pytest.raises(RuntimeError, match="this engine was closed: make a new one"):
        llm.add_request([1])


def test_a_dropped_engine_leaves_nothing(engine):
    llm = engine(2)
    llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    del llm


def test_a_worker_killed_between_calls(engine):
    llm = engine(2)
    os.kill(workers_of(llm)[0].pid, signal.SIGKILL)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 1 was killed \(exit code -9, SIGKILL\)"):
        llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    assert time.monotonic() - start < SECONDS
    check_closed(llm, "rank 1 was killed")


@pytest.mark.parametrize("ahead", [False, True])
def test_a_worker_killed_in_the_midst_of_a_call(engine, ahead):
    llm = engine(4, async_scheduling=ahead)
    stream = llm.stream([1, 2, 3], SamplingParams(temperature=0, max_tokens=400))
    for _ in range(3):
        next(stream)
    victim = workers_of(llm)[1].pid
    threading.Timer(0.05, os.kill, (victim, signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"rank 2 was killed \(exit code -9, SIGKILL\)"):
        for _ in stream:
            pass
    assert time.monotonic() - start < SECONDS
    check_closed(llm, "rank 2 was killed")


def test_a_worker_that_hangs_without_dying(engine, monkeypatch):
    monkeypatch.setenv("NANOVLLM_TIMEOUT_SECONDS", "8")  # making the engine waits for its ranks as well
    llm = engine(2)
    os.kill(workers_of(llm)[0].pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"did not answer for 8 seconds \(NANOVLLM_TIMEOUT_SECONDS"):
        llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    assert 7 < time.monotonic() - start < 8 + SECONDS
    check_closed(llm, "ranks did not answer")


def test_a_worker_that_takes_no_message(monkeypatch):
    monkeypatch.setenv("NANOVLLM_TIMEOUT_SECONDS", "0.3")
    commands = SharedMemoryCommands(get_context("spawn"), 2)
    try:
        with pytest.raises(RuntimeError, match="timed out: rank 1 took no message"):
            commands.send(bytes(2 * SEGMENT_BYTES), check=lambda: None)
    finally:
        commands.close()


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e9"])
def test_a_bad_timeout_is_refused_before_anything_starts(four_heads, text, monkeypatch):
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", lambda self: pytest.fail("a process was started"))
    monkeypatch.setenv("NANOVLLM_TIMEOUT_SECONDS", text)
    with pytest.raises(ValueError, match=f"NANOVLLM_TIMEOUT_SECONDS must be a positive number.*{text}"):
        make_llm(four_heads, 2)


def test_a_worker_that_raises(engine):
    llm = engine(2)
    start = time.monotonic()
    llm.model_runner._workers.send("no_such_method")
    with pytest.raises(RuntimeError, match=r"(?s)rank 1 raised an error.*Traceback.*no_such_method"):
        llm.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    assert time.monotonic() - start < SECONDS
    check_closed(llm, "rank 1 raised")


def test_ctrl_c_waits_for_the_end_of_a_step(two_ranks, four_heads):
    """Rank 0 stops between two steps, so the ranks stay together and the engine serves on."""
    # Where the tests run in the background of a shell, SIGINT is ignored, and Python leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    group = [os.getpid()] + [process.pid for process in workers_of(two_ranks)]
    params = SamplingParams(temperature=0, max_tokens=150)
    stream = two_ranks.stream([1, 2, 3], params)
    next(stream)
    timer = threading.Timer(0.05, lambda: [os.kill(pid, signal.SIGINT) for pid in group])
    timer.start()
    deadline = time.monotonic() + SECONDS
    try:
        with pytest.raises(KeyboardInterrupt):
            while time.monotonic() < deadline:
                for _ in stream:
                    pass
                stream = two_ranks.stream([1, 2, 3], params)
    finally:
        stream.close()
        timer.join()
        signal.signal(signal.SIGINT, before)
    check_greedy(two_ranks, four_heads, random_prompts(3, 5, 30, seed=7))


# Programs


def run_script(folder: Path, source: str, *arguments: object, launcher: tuple = ()) -> subprocess.CompletedProcess:
    script = folder / "script.py"
    script.write_text(source)
    root = str(Path(__file__).parents[3])
    env = os.environ | {"PYTHONPATH": root + os.pathsep + os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd=folder)


OPEN_AT_THE_END = """
import sys
from nanovllm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1], device="cpu", tensor_parallel_size=2)
    print(llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=5), use_tqdm=False)[0]["token_ids"])
    print(llm.model_runner._workers.commands._segment.name, *[p.pid for p in llm.model_runner._workers._processes])
"""


def test_a_program_that_ends_with_an_open_engine(four_heads, tmp_path):
    result = run_script(tmp_path, OPEN_AT_THE_END, four_heads.folder)
    assert (result.returncode, result.stderr) == (0, "")  # no warning of the resource tracker either
    drawn, left = result.stdout.splitlines()
    assert drawn == str(four_heads.greedy([[1, 2, 3]], 5)[0])
    segment, pid = left.split()
    assert not (Path("/dev/shm") / segment).exists() and not is_running(int(pid))


KILLED = OPEN_AT_THE_END + "    import os\n    sys.stdout.flush()\n    os.kill(os.getpid(), 9)\n"


def test_workers_end_when_their_parent_is_killed(four_heads, tmp_path):
    start = time.monotonic()
    result = run_script(tmp_path, KILLED, four_heads.folder)  # returns when nobody holds the script's output open
    assert time.monotonic() - start < 2 * SECONDS
    assert result.returncode == -signal.SIGKILL
    segment, pid = result.stdout.splitlines()[1].split()
    deadline = time.monotonic() + SECONDS
    while (is_running(int(pid)) or (Path("/dev/shm") / segment).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(pid)) and not (Path("/dev/shm") / segment).exists()


WITHOUT_GUARD = """
import sys
from nanovllm import LLM
print("started", flush=True)
LLM(sys.argv[1], device="cpu", tensor_parallel_size=2)
"""


def test_a_script_without_the_guard_says_what_is_missing(four_heads, tmp_path):
    result = run_script(tmp_path, WITHOUT_GUARD, four_heads.folder)
    assert result.returncode == 1
    assert result.stdout.splitlines() == ["started"] * 2  # the worker imported the script, once, and started none
    assert "if __name__ == '__main__':" in result.stderr.splitlines()[-1]


UNDER_TORCHRUN = """
import os, sys
from nanovllm import LLM, SamplingParams
size = int(os.environ["WORLD_SIZE"])
with LLM(sys.argv[1], device="cpu", tensor_parallel_size=size, num_kvcache_blocks=9, max_num_batched_tokens=20,
         max_num_seqs=6) as llm:
    prompts = eval(sys.argv[2])
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=12), use_tqdm=False)
    print([output["token_ids"] for output in outputs])
"""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


@pytest.mark.parametrize("size", [2, 4])
def test_torchrun(eight_heads, size, tmp_path):
    prompts = random_prompts(6, 5, 50, seed=8)
    result = run_script(tmp_path, UNDER_TORCHRUN, eight_heads.folder, prompts, launcher=(*TORCHRUN, str(size)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [str(eight_heads.greedy(prompts, 12))]


GRAPHS_UNDER_TORCHRUN = f"""
import os, sys
os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, {str(Path(__file__).parent)!r})
from fake_graphs import turn_graphs_on_in_this_process
from nanovllm import LLM, SamplingParams
turn_graphs_on_in_this_process()
settings = dict(num_kvcache_blocks=14, max_num_seqs=4, async_scheduling=sys.argv[4] == "True")
with LLM(sys.argv[1], device="cpu", tensor_parallel_size=2, **settings) as llm:
    runner, sent = llm.model_runner, []
    send = runner._workers.send
    runner._workers.send = lambda method, *args: sent.append((method, *args)) or send(method, *args)
    prompts, params = eval(sys.argv[2]), [SamplingParams(**p) for p in eval(sys.argv[3])]
    outputs = []
    for part in slice(0, 7), slice(7, 9):  # a request that penalizes lets no step be launched ahead
        outputs += llm.generate(prompts[part], params[part], use_tqdm=False)
    gathered = [args[0] for method, *args in sent if method == "gather_shard"]
    print([output["token_ids"] for output in outputs])
    print([output["logprobs"] for output in outputs])
    print(len(runner.replays), len(gathered), sum(method == "take_drawn" and args[1] for method, *args in sent))
    print(max(map(len, gathered)))
"""


@pytest.mark.parametrize("ahead", [False, True])
def test_ranks_replay_their_graphs_in_step(eight_heads, tmp_path, ahead):
    """Rows change hands, some are drawn after the graph, blocks run short: each rank's rows must follow.

    199 tokens: the last of rank 1's logits is padding. Only rows that rank 0 draws from are gathered, in only those steps.
    """
    pytest.importorskip("triton")
    prompts = random_prompts(9, 3, 40, seed=9)
    params = [{"temperature": 0, "max_tokens": 9 + 3 * i} for i in range(4)]
    params += [{"temperature": 0.8, "seed": 5, "max_tokens": 15}]
    params += [{"temperature": 0.8, "top_k": 3, "seed": i, "max_tokens": 20} for i in range(2)]
    params += [{"temperature": 0.8, "seed": 6, "max_tokens": 9}]
    params += [{"temperature": 0.8, "repetition_penalty": 1.2, "logprobs": 2, "seed": 7, "max_tokens": 12}]
    with make_llm(eight_heads, 1) as llm:
        outputs = llm.generate(prompts, [SamplingParams(**p) for p in params], use_tqdm=False)
    arguments = eight_heads.folder, prompts, params, ahead
    result = run_script(tmp_path, GRAPHS_UNDER_TORCHRUN, *arguments, launcher=(*TORCHRUN, "2"))
    assert result.returncode == 0, result.stderr
    drawn, logprobs, counts, most_rows = result.stdout.splitlines()
    assert drawn == str([output["token_ids"] for output in outputs])
    for got, output in zip(eval(logprobs)[-1], outputs[-1]["logprobs"], strict=True):
        assert got == pytest.approx(output, abs=1e-4)
    replays, gathers, broadcasts = map(int, counts.split())
    assert replays >= gathers + 10 >= 20 and broadcasts == gathers
    assert most_rows == "2"


SUMS_IN_NORMS = """
import os, signal, sys, threading
os.environ["TRITON_INTERPRET"] = "1"
from nanovllm import LLM, SamplingParams
from nanovllm.utils import inboxes
inboxes.MAX_ROWS = 16  # in the worker as well, which imports this
if __name__ == "__main__":
    from nanovllm.kernels import all_reduce
    calls, kernel = [], all_reduce.sum_add_rms_norm
    def counted(*args):
        calls.append(args[-1])
        return kernel(*args)
    all_reduce.sum_add_rms_norm = counted
    llm = LLM(sys.argv[1], device="cpu", attention_backend="triton", tensor_parallel_size=2, num_kvcache_blocks=20)
    params = SamplingParams(temperature=0, max_tokens=5)
    print([output["token_ids"] for output in llm.generate(eval(sys.argv[2]), params, use_tqdm=False)])
    print(len(calls), calls == [0, 1] * (len(calls) // 2))
    worker = llm.model_runner._workers._processes[0].pid
    def stop(*args):  # the worker may have sent its part of this sum already, but not of the next one
        all_reduce.sum_add_rms_norm = kernel
        os.kill(worker, signal.SIGSTOP)
        if sys.argv[3] == "killed":
            threading.Timer(1, os.kill, (worker, signal.SIGKILL)).start()
        else:
            os.environ["NANOVLLM_TIMEOUT_SECONDS"] = "4"
        return kernel(*args)
    all_reduce.sum_add_rms_norm = stop
    llm.generate([[1, 2, 3]], params, use_tqdm=False)
"""


@pytest.mark.parametrize(
    "lost, reason", [("killed", "rank 1 was killed"), ("stopped", "ranks did not answer for 4 seconds")]
)
def test_norms_sum_over_the_ranks(lost, reason, four_heads, tmp_path):
    """Our kernel through Triton's interpreter; then a rank is lost while rank 0 waits for it there."""
    pytest.importorskip("triton")
    prompts = random_prompts(3, 3, 20, seed=10)
    result = run_script(tmp_path, SUMS_IN_NORMS, four_heads.folder, prompts, lost)
    drawn, calls = result.stdout.splitlines()
    assert drawn == str(four_heads.greedy(prompts, 5))
    assert sum(map(len, prompts)) > 16  # so the first step's sums are the group's
    assert calls == "16 True"  # four steps of two layers
    assert f"RuntimeError: this engine was closed, because tensor-parallel {reason}" in result.stderr


def test_torchrun_ends_when_a_worker_fails(four_heads, tmp_path):
    source = UNDER_TORCHRUN.replace(
        "    prompts =", '    llm.model_runner._workers.send("no_such_method")\n    prompts ='
    )
    result = run_script(tmp_path, source, four_heads.folder, [[1, 2]], launcher=(*TORCHRUN, "2"))
    assert result.returncode != 0 and not result.stdout
    assert "no_such_method" in result.stderr
