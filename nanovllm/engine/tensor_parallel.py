"""The processes that share one model's weights, and how rank 0 drives them.

Every rank has a ModelRunner with its share of each layer and of the KV cache. Rank 0 is the process that called
`LLM(...)`: it alone schedules and talks to the user. Before each step it sends the step's inputs (token ids, positions,
slots, block tables: small arrays of integers, no sequences and no weights), so that the workers need no state but the
cache and cannot disagree with rank 0. Then all ranks run the same forward pass, and the layers' all-reduces hold them
together (Megatron-LM, Shoeybi et al. 2019, section 3).

Where decode steps are CUDA graphs, every rank has recorded its own, all-reduces included, and keeps the decoding rows on
its GPU. Rank 0 then sends what changes in the rows.

A graph ends with the tokens on every rank: each draws from its own part of the vocabulary, and the best score of all
decides. Rank 0 alone draws in other steps, and from rows that need the whole vocabulary, which the ranks then gather. What
it has drawn is broadcast from device to device: the next step may be launched before its tokens are known, and each rank
fills them in where that step needs them.

Where our Triton kernels run and the ranks can write each other's memory, the layers' sums of few rows are a kernel's and not
the group's (`nanovllm.models.summing_norms`).

The workers are spawned on this host and get their commands through shared memory, or torchrun has started them, on any
number of hosts, and the commands are broadcast. Nothing is global: each engine has its own workers, groups and store.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
import struct
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from io import BytesIO
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnContext
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from nanovllm.attention import get_backend
from nanovllm.config import EngineConfig, ModelConfig
from nanovllm.engine.input_batch import Drawn, StepInputs, prepare_inputs
from nanovllm.engine.model_runner import ModelRunner, choose_device
from nanovllm.engine.scheduler import Batch
from nanovllm.models.qwen3 import Qwen3ForCausalLM
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.inboxes import Inboxes

if TYPE_CHECKING:
    from nanovllm.engine.decode_rows import RowChanges

SEGMENT_BYTES = 2**20
POLL_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""How long a process may take to end by itself, and rank 0 to learn why a collective failed."""
TIMEOUT_VARIABLE = "NANOVLLM_TIMEOUT_SECONDS"
DEFAULT_TIMEOUT_SECONDS = 300.0
"""How long a rank waits for another that lives but does not answer: far longer than a layer takes, or than one rank reads
its weights longer than the other ones do."""
FOREVER = timedelta(days=365)
LOOPBACK = "127.0.0.1"
CLOSE = "close"

_HEADER = struct.Struct("<Q?")  # bytes in this piece, and whether more follow


def make_model_runner(config: EngineConfig, model_config: ModelConfig, folder: Path, max_model_len: int) -> ModelRunner:
    """The engine's ModelRunner, with its workers where tensor_parallel_size asks for some.

    Under torchrun only rank 0 returns; the other ranks work here until rank 0 closes, then leave by SystemExit(0).

    Raises:
        ValueError: the model, the machine or torchrun's processes cannot be shared so; no process was started.
        RuntimeError: a worker could not start; says why.
    """
    size = config.tensor_parallel_size
    arguments = (config, model_config, folder, max_model_len)
    if size == 1:
        return ModelRunner(*arguments)
    check_shards(model_config, size)
    answer_timeout()  # a bad one is refused before anything starts
    device = choose_device(config.device)
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        return ParallelModelRunner(join_torchrun(arguments, device), arguments)
    if device.type == "cuda" and size > torch.cuda.device_count():
        raise ValueError(
            f"tensor_parallel_size ({size}) must be at most the number of GPUs here, {torch.cuda.device_count()}."
        )
    return ParallelModelRunner(SpawnedWorkers(arguments, device), arguments)


def answer_timeout() -> timedelta:
    """How long the ranks wait for each other: what the environment variable NANOVLLM_TIMEOUT_SECONDS says, or 5 minutes.

    Raises ValueError where the variable is no positive number of at most a million.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, str(DEFAULT_TIMEOUT_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 1e6:
        raise ValueError(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, at most 1000000, got {text!r}.")
    return timedelta(seconds=seconds)


def check_shards(model_config: ModelConfig, size: int) -> None:
    """Raises ValueError where `size` ranks cannot share the model evenly: builds one layer without memory."""
    one_layer = dataclasses.replace(model_config, num_hidden_layers=1)
    with torch.device("meta"):
        Qwen3ForCausalLM(one_layer, get_backend("reference"), TensorParallel(0, size), max_positions=1)


def make_group(
    store: dist.Store, rank: int, size: int, device: torch.device, *, local: bool, timeout: timedelta
) -> dist.ProcessGroup:
    """A group of its own (not the process-wide default one): NCCL on GPUs, else gloo; `local` keeps to the loopback."""
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return dist.ProcessGroupNCCL(store, rank, size, options)
    if not local:
        return dist.ProcessGroupGloo(store, rank, size, timeout)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


def end_group(group: dist.ProcessGroup) -> None:
    """Ends NCCL's threads, and its kernels that wait for lost ranks; a gloo group ends with its last reference."""
    if dist.is_nccl_available() and isinstance(group, dist.ProcessGroupNCCL):
        group.abort()


class ParallelModelRunner(ModelRunner):
    """Rank 0's ModelRunner: has the workers run each forward pass with it."""

    def __init__(self, workers: Workers, arguments: tuple):
        self._workers = workers
        self._release = weakref.finalize(self, workers.close)  # also where the engine is dropped or the program ends
        try:
            with workers.together():
                super().__init__(*arguments, tp=workers.tp)
        except BaseException:
            self._release()
            raise
        workers.serving = True

    @property
    def failure(self) -> str | None:
        return self._workers.failure

    def _open_inboxes(self) -> Inboxes | None:
        self._workers.inboxes = super()._open_inboxes()
        return self._workers.inboxes

    def _logits(self, batch: Batch) -> torch.Tensor:
        inputs = prepare_inputs(batch, self.block_size, torch.device("cpu"), self._drawn)
        with self._workers.together():
            self._workers.send("forward_shard", inputs)
            return self._forward(to_device(inputs, self.device))

    def _replay(self, changes: RowChanges, num_seqs: int) -> None:
        with self._workers.together():
            self._workers.send("replay_shard", changes, num_seqs)
            super()._replay(changes, num_seqs)

    def _gather(self, rows: list[int]) -> torch.Tensor:
        with self._workers.together():
            self._workers.send("gather_shard", rows)
            return super()._gather(rows)

    def _share_drawn(self, number: int, in_rows: bool) -> None:
        if number:
            with self._workers.together():
                self._workers.send("take_drawn", number, in_rows)
                self._tp.broadcast(self._drawn.tokens[:number])

    def _wait_for_step(self, end: torch.cuda.Event | None) -> None:
        with self._workers.waiting():
            super()._wait_for_step(end)
        self._workers.check()  # an aborted sum ends without an exception, and its result means nothing

    def close(self) -> None:
        self.graphs = None  # they hold the group's collectives
        self._release()
        super().close()


class WorkerModelRunner(ModelRunner):
    """The other ranks': obeys commands."""

    def forward_shard(self, inputs: StepInputs) -> None:
        """Takes part in a step. The logits, whole on every rank, are rank 0's to sample from."""
        self._forward(to_device(inputs, self.device))

    @torch.inference_mode()
    def replay_shard(self, changes: RowChanges, num_seqs: int) -> None:
        """Takes part in a decode step that is a graph. All ranks find the same tokens."""
        self._replay(changes, num_seqs)
        self._drawn = self.rows.drawn()

    @torch.inference_mode()
    def gather_shard(self, rows: list[int]) -> None:
        """Gives rank 0 the logits of rows that it draws itself."""
        self._gather(rows)

    @torch.inference_mode()
    def take_drawn(self, number: int, in_rows: bool) -> None:
        """Takes the tokens that rank 0 drew in the last step."""
        tokens = self.rows.tokens if in_rows else torch.empty(number, dtype=torch.int64, device=self.device)
        self._tp.broadcast(tokens[:number])
        self._drawn = Drawn(tokens, {})

    def serve(self, receive: Callable[[], bytes]) -> None:
        """Runs the methods that rank 0 names, until it says CLOSE."""
        while True:
            method, args = pickle.loads(receive())
            if method == CLOSE:
                return
            getattr(self, method)(*args)


def to_device(inputs: Any, device: torch.device) -> Any:
    """The same dataclass with every tensor on the device."""
    if device.type == "cpu":
        return inputs
    moved = {}
    for field in dataclasses.fields(inputs):
        value = getattr(inputs, field.name)
        if isinstance(value, torch.Tensor):
            moved[field.name] = value.pin_memory().to(device, non_blocking=True)
        elif dataclasses.is_dataclass(value):
            moved[field.name] = to_device(value, device)
    return dataclasses.replace(inputs, **moved)


def pack(method: str, *args: Any) -> bytes:
    """A command as bytes; CPU tensors travel as NumPy arrays, which takes a tenth of the time."""
    file = BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump((method, args))
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        return (torch.from_numpy, (obj.numpy(),)) if isinstance(obj, torch.Tensor) else NotImplemented


# How commands travel


class SharedMemoryCommands:
    """From rank 0 to the workers of its host: one segment, and two semaphores for each worker.

    Rank 0 writes a piece of the message and releases each worker's `sent`. A worker copies the piece and releases its
    `taken`. Rank 0 writes again only once it has acquired every `taken`: nothing is overwritten unread, and a message
    larger than the segment travels piece by piece.

    These are semaphores, not multiprocessing Events: `Event.set()` waits for each sleeper to wake up, and would wait
    for ever for a worker that was killed in its sleep.
    """

    def __init__(self, context: SpawnContext, num_workers: int):
        self._segment = SharedMemory(create=True, size=SEGMENT_BYTES)
        self._sent = [context.Semaphore(0) for _ in range(num_workers)]
        self._taken = [context.Semaphore(1) for _ in range(num_workers)]

    def send(self, message: bytes, check: Callable[[], None]) -> None:
        """Hands the message to every worker. While one does not take it, calls `check`, which may raise.

        Raises RuntimeError where a worker has not taken the last message within `answer_timeout`.
        """
        room = SEGMENT_BYTES - _HEADER.size
        for start in range(0, len(message), room):
            piece = message[start : start + room]
            deadline = time.monotonic() + answer_timeout().total_seconds()
            for rank, taken in enumerate(self._taken, 1):
                while not taken.acquire(timeout=POLL_SECONDS):
                    check()
                    if time.monotonic() > deadline:
                        raise RuntimeError(f"timed out: rank {rank} took no message.")
            _HEADER.pack_into(self._segment.buf, 0, len(piece), start + room < len(message))
            self._segment.buf[_HEADER.size : _HEADER.size + len(piece)] = piece
            for sent in self._sent:
                sent.release()

    def receive(self, rank: int) -> bytes:
        """Waits for the next message; called by worker `rank`."""
        message, more = b"", True
        while more:
            self._sent[rank - 1].acquire()
            length, more = _HEADER.unpack_from(self._segment.buf)
            message += bytes(self._segment.buf[_HEADER.size : _HEADER.size + length])
            self._taken[rank - 1].release()
        return message

    def close(self) -> None:
        """Removes segment and semaphores from the system; called by rank 0."""
        self._segment.close()
        self._segment.unlink()
        self._sent, self._taken = [], []


class BroadcastCommands:
    """From rank 0 to ranks on any host: a gloo group that broadcasts a message's length, then its bytes."""

    def __init__(self, store: dist.Store, rank: int, size: int):
        # Workers wait in a broadcast while nobody asks for anything. A rank that dies drops its connections at once.
        self._group = make_group(store, rank, size, torch.device("cpu"), local=False, timeout=FOREVER)

    def send(self, message: bytes, check: Callable[[], None]) -> None:
        check()
        self._group.broadcast(torch.tensor([len(message)]), 0).wait()
        self._group.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), 0).wait()

    def receive(self) -> bytes:
        """Waits for the next message; called by the other ranks."""
        length = torch.empty(1, dtype=torch.int64)
        self._group.broadcast(length, 0).wait()
        message = torch.empty(int(length), dtype=torch.uint8)
        self._group.broadcast(message, 0).wait()
        return message.numpy().tobytes()

    def close(self) -> None:
        self._group = None


# The workers as rank 0 sees them


class Workers:
    """The ranks 1 to size - 1.

    Attributes:
        tp: rank 0's place in the group.
        inboxes: what rank 0's kernels sum through, or None.
        failure: what ended the group before its time, or None. It cannot be mended: the ranks are out of step.
        serving: whether the workers wait for commands, so that they can be told to end.
        waiting_since: since when (`time.monotonic`) rank 0 may be waiting in a kernel of ours, or None.
    """

    commands: SharedMemoryCommands | BroadcastCommands
    tp: TensorParallel | None = None
    inboxes: Inboxes | None = None

    def __init__(self) -> None:
        self.failure: str | None = None
        self.serving = False
        self.waiting_since: float | None = None

    def check(self) -> None:
        """Raises RuntimeError where the group has failed."""
        if self.failure:
            raise RuntimeError(self.failure)

    def send(self, method: str, *args: Any) -> None:
        """Has every worker run that method of its ModelRunner."""
        self.commands.send(pack(method, *args), self.check)

    @contextmanager
    def together(self) -> Iterator[None]:
        """For what all ranks do at once: an error in it ends the group, and says which rank was the cause.

        Ctrl-C waits until the step is over: rank 0 would leave the others waiting in an all-reduce.
        """
        self.check()
        with _ctrl_c_afterwards(), self.waiting():
            try:
                yield
            except BaseException as error:
                # What rank 0 sees of a lost worker is a broken connection: wait for the reason. Only RuntimeErrors are
                # such: PyTorch raises them from collectives, and `check` does.
                if isinstance(error, RuntimeError) and self.wait_for_failure():
                    traceback.clear_frames(error.__traceback__)  # they hold the group, and with it ports
                    raise RuntimeError(self.failure) from None
                if isinstance(error, RuntimeError) and "timed out" in str(error).lower():
                    traceback.clear_frames(error.__traceback__)
                    self.fail_silent()
                    raise RuntimeError(self.failure) from None
                self.fail(f"rank 0 raised {type(error).__name__}: {error}")
                raise
        self.check()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """For a step, or its end. In collectives PyTorch measures how long a rank is silent; in kernels of ours nobody does."""
        self.waiting_since = time.monotonic() if self.serving and self.inboxes else None
        try:
            yield
        finally:
            self.waiting_since = None

    @property
    def silent(self) -> bool:
        """Whether rank 0 has waited for longer than the ranks may take to answer."""
        since = self.waiting_since
        return since is not None and time.monotonic() - since > answer_timeout().total_seconds()

    def fail(self, reason: str) -> None:
        """Ends the group. The first reason is kept: what follows are its consequences."""
        if self.failure is None:
            self.failure = f"this engine was closed, because tensor-parallel {reason}"

    def fail_silent(self) -> None:
        seconds = answer_timeout().total_seconds()
        self.fail(f"ranks did not answer for {seconds:g} seconds ({TIMEOUT_VARIABLE} sets how many).")

    def end_waiting(self) -> None:
        """Ends what rank 0 may wait for other ranks in: its own kernels, and the group's."""
        if self.inboxes:
            self.inboxes.abort()
        end_group(self.tp.group)

    def wait_for_failure(self) -> bool:
        """Whether the group turns out to have failed."""
        deadline = time.monotonic() + GRACE_SECONDS
        while self.failure is None and time.monotonic() < deadline:
            self.look_for_reports()
            time.sleep(POLL_SECONDS / 10)
        return self.failure is not None

    def look_for_reports(self) -> None:
        """Fails the group where a worker reported an error."""

    def close(self) -> None:
        """Ends the workers and gives back what they shared. A second call does nothing."""
        raise NotImplementedError


class SpawnedWorkers(Workers):
    """Processes of this host, started by this one and gone when it goes.

    A thread waits for any of them to end, or to be silent for too long: then it takes down the others, which breaks the
    connections that rank 0 may be waiting on, and ends its kernels' waits.
    """

    def __init__(self, arguments: tuple, device: torch.device):
        super().__init__()
        size = arguments[0].tensor_parallel_size
        context = get_context("spawn")
        self._closing = False
        self._pid = os.getpid()
        self._store = dist.TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)  # port 0: any free one
        self.commands = SharedMemoryCommands(context, size - 1)
        # Rank 0 has chosen its GPU; the workers take the others in order.
        gpus = [gpu for gpu in range(torch.cuda.device_count()) if gpu != device.index]
        self._threads = max(1, torch.get_num_threads() // size)
        self._processes = [
            context.Process(
                target=_worker_main,
                args=(
                    rank,
                    self._store.port,
                    self.commands,
                    self._threads,
                    gpus[rank - 1] if gpus else None,
                    arguments,
                ),
                name=f"nanovllm-rank-{rank}",
                daemon=True,
            )
            for rank in range(1, size)
        ]
        self._watcher: threading.Thread | None = None
        try:
            for process in self._processes:
                process.start()
            self._watcher = threading.Thread(target=self._watch, name="nanovllm-watch-ranks", daemon=True)
            self._watcher.start()
            while not self._store.check([f"started/{rank}" for rank in range(1, size)]):
                self.check()
                time.sleep(POLL_SECONDS / 10)
            group = make_group(self._store, 0, size, device, local=True, timeout=answer_timeout())
            self.tp = TensorParallel(0, size, group)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def together(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)  # the ranks share the cores
        try:
            with super().together():
                yield
        finally:
            torch.set_num_threads(before)

    def fail(self, reason: str) -> None:
        super().fail(reason)
        for process in self._processes:
            process.kill()
        if self.tp:
            self.end_waiting()

    def _watch(self) -> None:
        ranks = {process.sentinel: rank for rank, process in enumerate(self._processes, 1)}
        ended: list[int] = []
        while not ended:
            ended = [ranks[sentinel] for sentinel in connection.wait(list(ranks), timeout=POLL_SECONDS)]
            if self._closing:
                return
            if not ended and self.silent:
                self.fail_silent()
                return
        codes = {}
        for rank in ended:
            self._processes[rank - 1].join(GRACE_SECONDS)
            codes[rank] = self._processes[rank - 1].exitcode
        # Where several have ended already, all but one because they lost a connection: a signal came from outside, and
        # of those that raised the first to report was the cause.
        killed = [rank for rank, code in codes.items() if code and code < 0]
        report = None if killed else first_report(dist.TCPStore(LOOPBACK, self._store.port, wait_for_workers=False))
        if report:
            rank, details = report
            self.fail(f"rank {rank} raised an error (exit code {codes.get(rank, 1)}):\n{details}")
        elif killed:
            name = signal.Signals(-codes[killed[0]]).name
            self.fail(f"rank {killed[0]} was killed (exit code {codes[killed[0]]}, {name}).")
        else:
            self.fail(
                f"rank {ended[0]} ended with exit code {codes[ended[0]]}; what it printed says why. A script must make "
                "its engine under `if __name__ == '__main__':`, because each worker imports the script first."
            )

    def close(self) -> None:
        if self._closing or os.getpid() != self._pid:  # a forked copy of this process owns no workers
            return
        self._closing = True
        started = [process for process in self._processes if process.pid is not None]
        if self.serving and self.failure is None:
            try:
                self.send(CLOSE)
            except RuntimeError as error:
                self.fail(f"rank 0 could not end the others: {error}")
        else:
            for process in started:
                process.kill()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
                process.join()
        if self._watcher and self._watcher is not threading.current_thread():
            self._watcher.join()
        for process in started:
            process.close()
        self._processes = []
        if self.tp:
            self.end_waiting()
        self.commands.close()
        self.tp = self.inboxes = self._store = None  # the last references: this frees the ports


class TorchrunWorkers(Workers):
    """Processes that torchrun started: it ends them all when one fails."""

    def __init__(self, store: dist.Store, commands: BroadcastCommands, tp: TensorParallel):
        super().__init__()
        self._store = store
        self.commands = commands
        self.tp = tp

    def look_for_reports(self) -> None:
        report = first_report(self._store)
        if report:
            self.fail("rank {} raised an error:\n{}".format(*report))

    def close(self) -> None:
        if self.tp is None:
            return
        if self.serving and self.failure is None:
            try:
                self.send(CLOSE)
            except RuntimeError as error:
                self.fail(f"rank 0 could not end the others: {error}")
        self.end_waiting()
        self.commands.close()
        self.tp = self.inboxes = self._store = None


def join_torchrun(arguments: tuple, device: torch.device) -> TorchrunWorkers:
    """Joins the processes that torchrun started. Returns in rank 0; the other ranks work and leave by SystemExit(0)."""
    size = arguments[0].tensor_parallel_size
    if size != int(os.environ["WORLD_SIZE"]):
        raise ValueError(
            f"tensor_parallel_size ({size}) must be 1 or the number of processes that torchrun started, "
            f"{os.environ['WORLD_SIZE']}."
        )
    if device.type == "cuda":
        local_rank, num_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise ValueError(f"torchrun must start at most as many processes on a host as it has GPUs, {num_gpus}.")
        torch.cuda.set_device(local_rank)
    store, rank, _ = next(rendezvous("env://", timeout=answer_timeout()))
    store = dist.PrefixStore("nanovllm", store)
    if store.add(f"engines/{rank}", 1) > 1:
        raise RuntimeError("under torchrun a process takes part in one engine, and this one has had it.")
    commands = BroadcastCommands(dist.PrefixStore("commands", store), rank, size)
    group = make_group(dist.PrefixStore("layers", store), rank, size, device, local=False, timeout=answer_timeout())
    tp = TensorParallel(rank, size, group)
    if rank == 0:
        return TorchrunWorkers(store, commands, tp)
    with _reporting(store, rank):
        WorkerModelRunner(*arguments, tp=tp).serve(commands.receive)
    end_group(group)
    sys.exit(0)


def _worker_main(
    rank: int, port: int, commands: SharedMemoryCommands, threads: int, gpu: int | None, arguments: tuple
) -> None:
    """What a spawned process does. It ends with rank 0's command, with an error, or with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal: rank 0 decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    store = dist.TCPStore(LOOPBACK, port, wait_for_workers=False)
    try:
        with _reporting(store, rank):
            config = arguments[0]
            if gpu is not None:
                torch.cuda.set_device(gpu)
            device = choose_device(config.device)
            store.set(f"started/{rank}", "")
            size = config.tensor_parallel_size
            group = make_group(store, rank, size, device, local=True, timeout=answer_timeout())
            runner = WorkerModelRunner(*arguments, tp=TensorParallel(rank, size, group))
            runner.serve(lambda: commands.receive(rank))
    except BaseException:
        os._exit(1)  # at once, whatever threads a broken group has left: rank 0 has the report and prints it
    os._exit(0)  # nothing is left to give back, and taking the interpreter down takes a second


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)


@contextmanager
def _reporting(store: dist.Store, rank: int) -> Iterator[None]:
    """Tells rank 0, through the store, what was raised."""
    try:
        yield
    except BaseException:
        store.set(f"report/{store.add('reports', 1)}", f"{rank}\n{traceback.format_exc()}")
        raise


def first_report(store: dist.Store) -> tuple[int, str] | None:
    """Rank and traceback of the first worker that reported an error."""
    if not store.check(["report/1"]):
        return None
    rank, _, details = store.get("report/1").decode().partition("\n")
    return int(rank), details


@contextmanager
def _ctrl_c_afterwards() -> Iterator[None]:
    """Holds the first Ctrl-C back until the block is over; the second one interrupts. Only the main thread gets any."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held = []

    def hold(signum: int, frame: Any) -> None:
        if held:
            before(signum, frame)
        held.append((signum, frame))

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        before(*held[0])
