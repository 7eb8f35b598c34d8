"""The sum over the ranks with addition and norm, by real processes, against float64.

On a CPU the ranks run the kernel under Triton's interpreter, with inboxes in shared memory.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from nanovllm.utils import inboxes as module
from nanovllm.utils.context import TensorParallel
from nanovllm.utils.inboxes import EMPTY, Inboxes, open_inboxes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch is built without gloo"),
]

WIDTH = 48  # no power of two: a row's last places are masked
EPS = 1e-6
ROWS = (3, 1, 7, 7, 2, 5)
"""Of calls one after the other."""


@dataclass
class Calls:
    """What one rank got.

    Attributes:
        calls: dtype -> for each call the residual and the norm.
        late: the same for calls that the ranks reach one after the other.
        stopped: the same for two calls of a row; rank 0 sends the second before the others read what it sent in the first.
        zeros: what all ranks' -0.0, and a NaN, add up to.
        empty: whether the inboxes were empty after each of these.
        alone_seconds: how long rank 0 took for calls that it made alone, and aborted.
        refused: what the ranks got where one of them could not open the others' memory.
    """

    calls: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]]
    late: list[tuple[torch.Tensor, torch.Tensor]]
    stopped: list[tuple[torch.Tensor, torch.Tensor]]
    zeros: torch.Tensor
    empty: list[bool]
    alone_seconds: float
    refused: Inboxes | None


def inputs(size: int, rows: int, dtype: torch.dtype, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ranks' parts (size, rows, WIDTH), the residual and the norm's weight."""
    generator = torch.Generator().manual_seed(seed)
    parts, residual = (torch.randn(n, rows, WIDTH, generator=generator).to(dtype) for n in (size, 1))
    return parts, residual[0], (torch.rand(WIDTH, generator=generator) + 0.5).to(dtype)


def make_device(rank: int, size: int) -> torch.device:
    return torch.device("cuda", rank) if torch.cuda.device_count() >= size else torch.device("cpu")


def run_rank(rank: int, size: int, folder: Path) -> None:
    from nanovllm.engine.tensor_parallel import make_group
    from nanovllm.kernels.all_reduce import sum_add_rms_norm

    torch.set_num_threads(1)
    watchdog = threading.Timer(120, os._exit, (1,))  # a rank that waits for ever fails its tests
    watchdog.daemon = True
    watchdog.start()
    device = make_device(rank, size)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = dist.FileStore(str(folder / "store"), size)
    tp = TensorParallel(rank, size, make_group(store, rank, size, device, local=True, timeout=timedelta(seconds=60)))

    def call(inboxes, number, rows, dtype, wide=False):
        parts, residual, weight = (tensor.to(device) for tensor in inputs(size, rows, dtype, number))
        x = torch.cat([parts[rank], parts[rank]], dim=1)[:, WIDTH:] if wide else parts[rank]
        out = sum_add_rms_norm(x, residual, weight, EPS, inboxes, number % 2)
        return residual.cpu(), out.cpu()

    def is_empty(inboxes):
        """Of all ranks, and none sends on before all have looked."""
        return bool(tp.minimum(int((inboxes.mine == EMPTY[inboxes.mine.dtype]).all()), device))

    calls, empty = {}, []
    for dtype in (torch.float16, torch.float32):
        inboxes = open_inboxes(tp, WIDTH, dtype, device)
        calls[dtype] = [call(inboxes, i, rows, dtype, wide=i == 2) for i, rows in enumerate(ROWS)]
        empty.append(is_empty(inboxes))

    late = []
    for i in range(2 * size):
        if i % size == rank:
            time.sleep(0.3)
        late.append(call(inboxes, i, ROWS[i % len(ROWS)], torch.float32))
    empty.append(is_empty(inboxes))

    store.set(f"pid/{rank}", str(os.getpid()))
    others = [int(store.get(f"pid/{other}")) for other in range(1, size)]
    if rank == 0:
        while (inboxes.mine[0, 1:, 0] == EMPTY[torch.int32]).any():
            time.sleep(0.01)
        for pid in others:  # they wait for this rank's row
            os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.5, lambda: [os.kill(pid, signal.SIGCONT) for pid in others]).start()
    stopped = [call(inboxes, i, 1, torch.float32) for i in range(2)]
    empty.append(is_empty(inboxes))

    x, residual = (torch.full((1, WIDTH), -0.0, device=device) for _ in range(2))
    x[0, 5] = float("nan")
    for parity in range(2):
        sum_add_rms_norm(x, residual, torch.ones(WIDTH, device=device), EPS, inboxes, parity)
    empty.append(is_empty(inboxes))

    # A call that no peer answers, after one that all have ended.
    tp.minimum(0, device)
    seconds = 0.0
    if rank == 0:
        began = time.monotonic()
        threading.Timer(0.5, inboxes.abort).start()
        for parity in range(4):
            call(inboxes, parity, 2, torch.float32)
        seconds = time.monotonic() - began
    tp.minimum(0, device)

    if rank == size - 1:
        module._map = module._PeerMemory = None  # calling it raises
    refused = open_inboxes(tp, WIDTH, torch.float32, device)
    torch.save(Calls(calls, late, stopped, residual.cpu(), empty, seconds, refused), folder / f"{rank}.pt")
    if device.type == "cuda":
        os._exit(0)  # without waiting for NCCL's threads


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory) -> list[Calls]:
    size = request.param
    if make_device(0, size).type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip(f"needs {size} GPUs, or TRITON_INTERPRET=1")
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.spawn(run_rank, (size, folder), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def check(got: list[tuple[torch.Tensor, torch.Tensor]], number: int, rows: int, dtype: torch.dtype) -> None:
    """One call's results on every rank."""
    parts, residual, weight = inputs(len(got), rows, dtype, number)
    total = parts.double().sum(0) + residual.double()
    normed = total / (total.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    # Parts are summed and rounded, then the residual is added and rounded: two roundings in the dtype.
    tolerance = {torch.float16: 4e-3, torch.float32: 2e-6}[dtype]
    for after, out in got:
        assert after.dtype == out.dtype == dtype
        torch.testing.assert_close(after.double(), total, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(out.double(), normed, rtol=tolerance, atol=tolerance)
        assert torch.equal(after, got[0][0]) and torch.equal(out, got[0][1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_calls_in_turn_equal_float64_and_all_ranks_have_the_same_bits(ranks, dtype):
    for number, rows in enumerate(ROWS):
        check([rank.calls[dtype][number] for rank in ranks], number, rows, dtype)


def test_rounds_where_sum_and_addition_round(ranks):
    for number, rows in enumerate(ROWS):
        parts, residual, _ = inputs(len(ranks), rows, torch.float16, number)
        total = torch.zeros(rows, WIDTH)
        for part in parts:
            total += part.float()
        assert torch.equal(ranks[0].calls[torch.float16][number][0], residual + total.half())


def test_a_rank_may_come_late(ranks):
    for number in range(2 * len(ranks)):
        check([rank.late[number] for rank in ranks], number, ROWS[number % len(ROWS)], torch.float32)


def test_a_rank_that_is_ahead_overwrites_nothing(ranks):
    for number in range(2):
        check([rank.stopped[number] for rank in ranks], number, 1, torch.float32)


def test_inboxes_are_empty_after_a_call(ranks):
    assert all(all(rank.empty) for rank in ranks)


def test_negative_zeros_arrive_though_they_mean_empty(ranks):
    for rank in ranks:
        assert rank.zeros[0, 5].isnan() and rank.zeros.nan_to_num().abs().max() == 0


def test_an_abort_ends_this_wait_and_those_to_come(ranks):
    assert 0.5 < ranks[0].alone_seconds < 20


def test_one_rank_that_cannot_open_memory_keeps_all_from_it_and_no_file_is_left(ranks):
    assert [rank.refused for rank in ranks] == [None] * len(ranks)
    deadline = time.monotonic() + 10  # other tests may have files for a moment
    while list(Path("/dev/shm").glob("nanovllm-inbox-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(Path("/dev/shm").glob("nanovllm-inbox-*"))


def one_rank(dtype: torch.dtype = torch.float32) -> Inboxes:
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    return Inboxes(TensorParallel(), torch.full((2, 1, 4, WIDTH), EMPTY[bits], dtype=bits), dtype, {})


def test_serves_few_rows_of_its_own_kind():
    inboxes = one_rank()
    assert inboxes.serves(torch.empty(1, WIDTH)) and inboxes.serves(torch.empty(4, WIDTH))
    for other in (torch.empty(0, WIDTH), torch.empty(5, WIDTH), torch.empty(4, 40), torch.empty(4, WIDTH).half()):
        assert not inboxes.serves(other)


def test_errors_name_the_argument():
    from nanovllm.kernels.all_reduce import sum_add_rms_norm

    x, weight = torch.zeros(4, WIDTH), torch.ones(WIDTH)
    with pytest.raises(ValueError, match=r"x must have up to 4 rows of 48 .* got \(5, 48\)"):
        sum_add_rms_norm(torch.zeros(5, WIDTH), torch.zeros(5, WIDTH), weight, EPS, one_rank(), 0)
    with pytest.raises(ValueError, match=r"x must have .* strides \(1, 4\)"):
        sum_add_rms_norm(torch.zeros(WIDTH, 4).T, x, weight, EPS, one_rank(), 0)
    for residual, scale in ((x[:3], weight), (torch.zeros(WIDTH, 4).T, weight), (x, weight[:40])):
        with pytest.raises(ValueError, match="residual must be contiguous"):
            sum_add_rms_norm(x, residual, scale, EPS, one_rank(), 0)


def test_memory_that_cannot_or_must_not_be_written_is_refused(monkeypatch):
    device = torch.device("cuda", 0)
    with pytest.raises(RuntimeError, match="GPU 0 does not reach the memory of GPU 0"):
        module._PeerMemory((bytes(64), 0), 0, device)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: False)
    with pytest.raises(RuntimeError, match="GPU 0 does not reach the memory of GPU 1"):
        module._PeerMemory((bytes(64), 0), 1, device)
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    with pytest.raises(RuntimeError, match="NCCL_P2P_DISABLE is set"):
        module._PeerMemory((bytes(64), 0), 1, device)


def test_more_ranks_send_fewer_rows():
    """A rank sends its rows to each of the others; so many bytes a call at most."""
    assert module.most_rows(2, 8192) == 512 and module.most_rows(4, 8192) == 341 and module.most_rows(8, 16384) == 73


class FakeDriver:
    """A driver whose allocations start 256 bytes before any address; opened, they lie at OPENED."""

    OPENED = 2**40
    code = 0

    def __init__(self):
        self.closed = []

    def cuMemGetAddressRange_v2(self, base, length, address):
        base._obj.value = address.value - 256
        return self.code

    def cuIpcGetMemHandle(self, handle, base):
        handle._obj.bytes[:] = [base.value % 251] * 64
        return self.code

    def cuIpcOpenMemHandle_v2(self, base, handle, flags):
        assert flags == 1
        base._obj.value = self.OPENED + handle.bytes[63]
        return self.code

    def cuCtxSynchronize(self):
        self.closed.append("waited")

    def cuIpcCloseMemHandle(self, base):
        self.closed.append(base.value)


def test_memory_is_opened_where_the_tensor_starts_in_it(monkeypatch):
    driver = FakeDriver()
    monkeypatch.setattr(module, "_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda a, b: True)
    tensor = torch.zeros(4)
    shared = module._share(tensor)
    memory = module._PeerMemory(shared, 1, torch.device("cuda", 0))
    base = driver.OPENED + (tensor.data_ptr() - 256) % 251
    assert memory.data_ptr() == base + 256
    del memory
    assert driver.closed == ["waited", base]  # kernels may still be writing
    driver.code = 201
    with pytest.raises(RuntimeError, match="cuIpcOpenMemHandle_v2 failed with CUDA error 201"):
        module._PeerMemory(shared, 1, torch.device("cuda", 0))
