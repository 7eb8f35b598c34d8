"""Programmatic dependent launch: a kernel's programs may take their places before the kernel before it has ended.

Between two kernels of a stream the GPU is idle for about a microsecond: the next one is launched when the last program
of the one before has ended and its writes are visible. A decode step of a small model is three hundred kernels of a few
microseconds. A kernel that is launched with `launch_pdl=True` may start earlier; it must call `gdc_wait` before it reads
what the one before wrote, and waits there. `gdc_launch_dependents` lets the next one start.
(CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; compute capability 9.0 and up.)
"""

import functools

import torch


@functools.cache
def _supported(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (9, 0)


def early_launch(x: torch.Tensor) -> dict[str, bool]:
    """The arguments PDL and launch_pdl of a kernel that works on x's device."""
    supported = x.is_cuda and _supported(x.device)
    return {"PDL": True, "launch_pdl": True} if supported else {"PDL": False}
