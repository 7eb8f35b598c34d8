"""Memory of each rank that the other ranks can write: how a kernel of ours sums over the ranks (`kernels.all_reduce`)."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import pickle
import socket
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch

from nanovllm.utils.context import TensorParallel

logger = logging.getLogger(__name__)

MAX_ROWS = 512
MAX_SENT = 8 * 2**20
"""Up to so many rows, and bytes that a rank sends in a call, are the kernel's; larger sums are NCCL's, which sends less where
there are more than two ranks."""
EMPTY = {torch.int16: -(2**15), torch.int32: -(2**31)}
"""What an empty place holds: -0.0 as an integer of its size."""
CARD_BYTES = 2048


class Inboxes:
    """This rank's inbox and the addresses of all ranks'.

    Attributes:
        mine: (2, size, max_rows, width) integers as wide as the model's dtype: parity, sender, row, number.
        addresses: (size) int64, where this process sees each rank's inbox.
        aborted: a word, 1 where nobody must wait any more.
    """

    def __init__(self, tp: TensorParallel, mine: torch.Tensor, dtype: torch.dtype, theirs: dict[int, Any]):
        self.rank, self.size = tp.rank, tp.size
        _, _, self.max_rows, self.width = mine.shape
        self.dtype = dtype
        self.mine = mine
        self._theirs = theirs  # open as long as this lives
        places = [mine.data_ptr() if rank == tp.rank else theirs[rank].data_ptr() for rank in range(tp.size)]
        self.addresses = torch.tensor(places, dtype=torch.int64, device=mine.device)
        self.aborted = torch.zeros(1, dtype=torch.int32, device=mine.device)
        self._stream = torch.cuda.Stream(mine.device) if mine.is_cuda else None
        self._one = torch.ones(1, dtype=torch.int32, pin_memory=mine.is_cuda)

    def serves(self, x: torch.Tensor) -> bool:
        """Whether the kernel takes x (T, width): says the same on every rank."""
        return 0 < x.shape[0] <= self.max_rows and x.shape[1:] == (self.width,) and x.dtype == self.dtype

    def abort(self) -> None:
        """Ends all waits of this rank's kernels, those to come as well. From any thread."""
        if self._stream is None:
            self.aborted.copy_(self._one)
            return
        try:
            with torch.cuda.stream(self._stream):  # the layers' stream is the one that waits
                self.aborted.copy_(self._one, non_blocking=True)
        except RuntimeError as error:  # after a CUDA error nothing runs any more, and nothing waits
            logger.warning("could not tell the GPU that a rank is lost: %s", error)


def most_rows(size: int, row_bytes: int) -> int:
    """Rows that one of `size` ranks may send."""
    return min(MAX_ROWS, MAX_SENT // (row_bytes * (size - 1)))


def open_inboxes(tp: TensorParallel, width: int, dtype: torch.dtype, device: torch.device) -> Inboxes | None:
    """Opens an inbox on every rank for rows of `width` numbers; None, on every rank, where any rank cannot write another's.

    All ranks call it together. They must run on one host, on GPUs that reach each other's memory, or on the CPU.
    """
    shape = (2, tp.size, most_rows(tp.size, width * dtype.itemsize), width)
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    reason, card, theirs, path = "", b"", {}, None
    try:
        if device.type == "cuda":
            mine = torch.full(shape, EMPTY[bits], dtype=bits, device=device)
            torch.cuda.synchronize(device)
            card = pickle.dumps((socket.gethostname(), device.index, _share(mine)))
        else:
            path = _new_file()
            mine = _map(path, shape, bits).fill_(EMPTY[bits])
            card = pickle.dumps((socket.gethostname(), None, path))
    except Exception as error:
        reason = f"cannot share memory: {error}"
    cards = _exchange(tp, card, device)
    try:
        for rank, each in enumerate(cards):
            if rank != tp.rank and not reason:
                host, index, handle = pickle.loads(each)
                if host != socket.gethostname():
                    raise RuntimeError(f"rank {rank} runs on another host")
                if device.type == "cuda":
                    theirs[rank] = _PeerMemory(handle, index, device)
                else:
                    theirs[rank] = _map(handle, shape, bits)
    except Exception as error:
        reason = f"cannot write rank {rank}'s memory: {error}"
    all_can = tp.minimum(0 if reason else 1, device)
    if path:
        os.unlink(path)  # all ranks have it open, or none will need it
    if not all_can:
        logger.info("the ranks' sums are left to the process group: %s", reason or "another rank could not open memory")
        return None
    return Inboxes(tp, mine, dtype, theirs)


class _Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]


@functools.cache
def _driver() -> ctypes.CDLL:
    """CUDA's driver, by itself: PyTorch's way of sharing memory counts users in files, which killed processes leave."""
    driver = ctypes.CDLL("libcuda.so.1")
    driver.cuIpcOpenMemHandle_v2.argtypes = [ctypes.c_void_p, _Handle, ctypes.c_uint]
    return driver


def _call(name: str, *args: Any) -> None:
    code = getattr(_driver(), name)(*args)
    if code:
        raise RuntimeError(f"{name} failed with CUDA error {code}")


def _share(tensor: torch.Tensor) -> tuple[bytes, int]:
    """What another process needs to open the tensor's memory: the handle of its allocation, and where it starts there."""
    base, length, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(length), ctypes.c_uint64(tensor.data_ptr()))
    _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    return bytes(handle.bytes), tensor.data_ptr() - base.value


class _PeerMemory:
    """A tensor of another process on GPU `index`, opened so that `device` can write it.

    Raises RuntimeError where it cannot, or must not: who has set NCCL_P2P_DISABLE has GPUs that only claim to reach each
    other.
    """

    def __init__(self, shared: tuple[bytes, int], index: int, device: torch.device):
        if os.environ.get("NCCL_P2P_DISABLE", "0") != "0":
            raise RuntimeError("NCCL_P2P_DISABLE is set")
        if index == device.index or not torch.cuda.can_device_access_peer(device.index, index):
            raise RuntimeError(f"GPU {device.index} does not reach the memory of GPU {index}")
        handle, self._offset = shared
        self._base = ctypes.c_uint64()
        enable_peer_access = 1
        _call("cuIpcOpenMemHandle_v2", ctypes.byref(self._base), _Handle.from_buffer_copy(handle), enable_peer_access)
        weakref.finalize(self, _close, self._base).atexit = False  # a process that ends gives it back anyway

    def data_ptr(self) -> int:
        return self._base.value + self._offset


def _close(base: ctypes.c_uint64) -> None:
    _driver().cuCtxSynchronize()
    _driver().cuIpcCloseMemHandle(base)


def _new_file() -> str:
    """An empty file, in memory where the system has a place for such."""
    shm = Path("/dev/shm")
    file, path = tempfile.mkstemp(prefix="nanovllm-inbox-", dir=shm if shm.is_dir() else None)
    os.close(file)
    return path


def _map(path: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_file(path, shared=True, size=torch.Size(shape).numel(), dtype=dtype).view(shape)


def _exchange(tp: TensorParallel, card: bytes, device: torch.device) -> list[bytes]:
    """Every rank's few bytes, by rank."""
    padded: Any = torch.zeros(CARD_BYTES, dtype=torch.uint8)
    padded[: len(card)] = torch.frombuffer(bytearray(card or b"\0"), dtype=torch.uint8)
    return [bytes(each) for each in tp.all_gather_last(padded.to(device)).cpu().view(tp.size, CARD_BYTES).numpy()]
