"""Programmatic dependent launch: a kernel's programs may take their places before the kernel before it has ended.

Between two kernels of a stream the GPU is idle for about a microsecond: the next one is launched when the last program
of the one before has ended and its writes are visible. A decode step of a small model is three hundred kernels of a few
microseconds. A kernel that is launched with `launch_pdl=True` may start earlier; it must call `gdc_wait` before it reads
what the one before wrote, and waits there. `gdc_launch_dependents` lets the next one start. Our kernels call it first, so
while one computes, several others may already wait in a row, each with its weights on the way. That is safe: a wait ends
when the kernel before it is complete, and that one is complete only after its own wait.
(CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; compute capability 9.0 and up.)
"""

import functools

import torch
import triton
import triton.language as tl


@functools.cache
def _supported(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


def early_launch(x: torch.Tensor) -> dict[str, bool]:
    """The arguments PDL and launch_pdl of a kernel that works on x's device."""
    supported = x.is_cuda and _supported(x.device)
    return {"PDL": True, "launch_pdl": True} if supported else {"PDL": False}


@triton.jit
def prefetch(pointers):
    """Has the cache lines of these addresses brought from memory into the L2 cache, and waits for nothing.

    Allowed before `gdc_wait` for anything that earlier steps wrote: L2 is shared, so a later write to a line is seen.
    """
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], dtype=tl.int32, is_pure=False, pack=1
    )
