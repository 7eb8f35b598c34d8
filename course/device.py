"""What this machine has: processor, memory, GPU, and the versions that decide what runs on it."""

from __future__ import annotations

import html
import os
import platform
from pathlib import Path

GIB = 2**30


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def name() -> str:
    """Return the device on which the engine runs here: the GPU's name, or the processor's with its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    cores = cpu_count()
    return f"{cpu_name()}, {cores} core{'s' if cores > 1 else ''}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "triton", "numpy", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def facts() -> dict[str, str]:
    """Return this machine's facts by name, in the order in which a person reads them."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    table = {
        "processor": f"{cpu_name()}, {cpu_count()} usable cores",
        "memory": f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free",
        "GPU": "none; the notebooks show recorded GPU runs where they need one",
    }
    if torch.cuda.is_available():
        table["GPU"] = "; ".join(
            f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / GIB:.0f} GiB"
            for i in range(torch.cuda.device_count())
        )
    table["system"] = f"{platform.system()} {platform.machine()}"
    table |= {package: number for package, number in versions().items()}
    table["threads"] = f"{torch.get_num_threads()} for torch"
    return table


def show() -> None:
    """Display `facts` as one table."""
    from IPython.display import display

    table = facts()
    width = max(map(len, table))
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(key)}</th>'
        f'<td style="text-align: left">{html.escape(value)}</td></tr>'
        for key, value in table.items()
    )
    text = "\n".join(f"{key:<{width}}  {value}" for key, value in table.items())
    display({"text/plain": text, "text/html": f"<table>{rows}</table>"}, raw=True)
