"""x W^T for 2 to 64 rows of x: every weight is read once, and asked for before x is there.

A batch that decodes multiplies a few rows with every weight: the time is the time to read the weight, plus what it takes to
start and to end. A small model's weight is read in a few microseconds, and start and end take about as long.

Idea 1, do not wait for x: launched early (see `launch`), a program first has its part of the weight brought into L2, while
the kernels before this one still run, and only then waits for x.

Idea 2, weight rows as the tall side: a tensor-core product wants 64 rows on one side and takes as few as 8 on the other. So
a program computes out^T: 64 rows of the weight times all rows of x. Few rows cost little padding.

Idea 3, split where tiles are few: 1,024 outputs are 16 tiles, for 132 multiprocessors. So K is cut into pieces, one program
each; each stores its partial sum and counts itself in, and the last one adds them up, in the same order every time.

Idea 4, gate and up together: with `gated` a program holds 32 rows of gate and the same 32 rows of up, and writes
silu(gate) * up. The two halves never go to memory.

Shapes: x (M, K), weight (N, K) -> (M, N); gated: weight (2N, K), gate above up -> (M, N).
Bytes: itemsize * (weight's numbers + M * K + M * N), and 8 * M * N for each partial.
Compared with: float64.
"""

import functools

import torch
import triton
import triton.language as tl

from nanovllm.kernels.launch import early_launch, prefetch
from nanovllm.kernels.silu_mul import silu_times

MAX_ROWS = 64
"""Above it cuBLAS is as fast."""
TALL = 64
"""Weight rows of a program."""
MULTIPLE = 256
"""What K must be a multiple of."""
MAX_NUMBERS = 2**23 - 1
"""Larger weights take so long to read that cuBLAS's slower start does not matter, and it reads them faster."""
LINE = 64
"""Numbers of two bytes in a cache line."""
STEPS = {16: (256, 3), 32: (256, 3), 64: (128, 4)}
"""Rows -> inputs that a product takes at once, and how many of these steps are on their way."""


@triton.jit(do_not_specialize=["num_rows"])
def _skinny_kernel(
    x, weight, out, partials, counters, num_rows, x_stride,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TALL: tl.constexpr, BK: tl.constexpr, SPLIT: tl.constexpr,
    GATED: tl.constexpr, LINE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    piece = tl.program_id(1)
    WIDE: tl.constexpr = TALL // 2 if GATED else TALL
    SHARE: tl.constexpr = K // SPLIT
    tall = tl.arange(0, TALL)
    if GATED:
        weight_row = tile * WIDE + tall % WIDE + tall // WIDE * N
    else:
        weight_row = tile * WIDE + tall
    weight_rows = weight + weight_row.to(tl.int64)[:, None] * K + piece * SHARE
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        for start in range(0, SHARE, BK):
            prefetch(weight_rows + (start + tl.arange(0, BK // LINE) * LINE)[None, :])
        tl.extra.cuda.gdc_wait()

    row = tl.arange(0, ROWS)
    inside = (row < num_rows)[None, :]
    k = tl.arange(0, BK)
    columns = x + row[None, :] * x_stride + piece * SHARE + k[:, None]
    acc = tl.zeros([TALL, ROWS], tl.float32)
    for start in range(0, SHARE, BK):
        w = tl.load(weight_rows + (start + k)[None, :])
        acc = tl.dot(w, tl.load(columns + start, mask=inside, other=0.0), acc)

    if SPLIT > 1:
        place = partials + (tile * SPLIT * TALL + tall[:, None]) * ROWS + row[None, :]
        tl.store(place + piece * TALL * ROWS, acc)
        tl.debug_barrier()  # all of this program's stores come before it counts itself in
        arrived = tl.atomic_add(counters + tile, 1, sem="acq_rel")
        last = arrived == SPLIT - 1
        if last:
            tl.store(counters + tile, 0)  # for the next launch
            acc = tl.zeros([TALL, ROWS], tl.float32)
            for other in tl.static_range(SPLIT):
                # Other programs wrote them: .cg reads past this multiprocessor's own cache.
                acc += tl.load(place + other * TALL * ROWS, cache_modifier=".cg")
        inside = inside & last
    if GATED:
        gate, up = acc.reshape(2, WIDE, ROWS).permute(1, 2, 0).split()
        acc = silu_times(gate, up)
    output = tile * WIDE + tl.arange(0, WIDE)
    tl.store(out + row[None, :] * N + output[:, None], acc.to(out.dtype.element_ty), mask=inside)


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    """Zeros that every launch leaves zeros. A kernel launched early touches them after its wait only: one set will do."""
    return torch.zeros(4096, dtype=torch.int32, device=device)


def serves(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel takes these: two bytes a number, up to MAX_ROWS rows, sizes that fill its tiles and are small."""
    outputs, size = weight.shape
    return (
        len(x) <= MAX_ROWS
        and x.dtype.itemsize == 2
        and outputs % TALL == 0
        and size % MULTIPLE == 0
        and outputs * size <= MAX_NUMBERS
        and x.stride(-1) == 1
        and weight.is_contiguous()
    )


def pieces(tiles: int, size: int) -> int:
    """Into how many pieces K is cut: as many as give every multiprocessor of a large GPU a program, but no short ones.

    A piece costs a partial and a merge. Where there are very few tiles, pieces of 512 inputs pay, else of 1,024.
    """
    shortest = 512 if tiles <= 32 else 1024
    fits = [n for n in (2, 4) if tiles * n <= 128 and size % (n * MULTIPLE) == 0 and size // n >= shortest]
    return max(fits, default=1)


def skinny_linear(x: torch.Tensor, weight: torch.Tensor, gated: bool = False) -> torch.Tensor:
    """x (M, K) and weight (N, K) -> x weight^T (M, N), summed in float32.

    Args:
        gated: weight is (2N, K), gate above up, and the result silu(x gate^T) * (x up^T), (M, N).

    Raises:
        ValueError: `serves` is false for them.
    """
    if x.shape[1] != weight.shape[1] or not serves(x, weight):
        raise ValueError(
            f"x must have up to {MAX_ROWS} rows of two-byte numbers and weight a multiple of {TALL} rows and of "
            f"{MULTIPLE} columns, got x {tuple(x.shape)} {x.dtype} and weight {tuple(weight.shape)}"
        )
    num_rows, size = x.shape
    tiles = weight.shape[0] // TALL
    outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    rows = max(16, triton.next_power_of_2(num_rows))
    step, stages = STEPS[rows]
    split = pieces(tiles, size)
    out = torch.empty((num_rows, outputs), dtype=x.dtype, device=x.device)
    partials = torch.empty((tiles, split, TALL, rows), dtype=torch.float32, device=x.device) if split > 1 else out
    _skinny_kernel[(tiles, split)](
        x, weight, out, partials, _counters(x.device), num_rows, x.stride(0),
        N=outputs, K=size, ROWS=rows, TALL=TALL, BK=step, SPLIT=split, GATED=gated, LINE=LINE,
        num_warps=4, num_stages=stages, **early_launch(x),
    )  # fmt: skip
    return out
