"""A kernel of this very environment, whatever kernel specs the user has installed."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Any

from course.notebooks import FOLDER, Notebook

TEST_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "NANOVLLM_MODEL": "",
}
"""Set for test runs: on a busy machine with few cores more threads make everything slower; stored outputs are those of
the embedded model, and no test asks a network."""


@contextmanager
def running(notebook: Notebook, timeout: float = 300) -> Iterator[object]:
    """Start a kernel for `notebook` and yield an ``nbclient.NotebookClient`` whose ``execute_cell`` runs its cells.

    The kernel works in the notebooks' folder. A cell that runs longer than `timeout` seconds raises.
    """
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisEnvironment(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisEnvironment())
    client = NotebookClient(
        notebook,
        km=manager,
        timeout=timeout,
        resources={"metadata": {"path": str(FOLDER)}},
        coalesce_streams=True,
        shutdown_kernel="immediate",
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    # A kernel manager that is passed in is not cleaned up unless asked: the kernel would outlive the notebook.
    with client.setup_kernel(cleanup_kc=True):
        client.kc.shell_channel.get_msg = looking_again(client.kc.shell_channel.get_msg)
        yield client


def looking_again(get_msg: Callable[..., Awaitable[Any]], seconds: float = 0.5) -> Callable[..., Awaitable[Any]]:
    """`get_msg(timeout)` of a channel as a function that waits as long, but looks every few `seconds`.

    While it waits for a cell's reply, nbclient also sends on that socket, when a widget captures output. Sending can take
    away the notice that the reply is there; the wait would then last until the cell's timeout.
    """

    async def get(timeout: float | None = None) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = seconds if end is None else max(0.0, end - time.monotonic())
            try:
                return await get_msg(timeout=min(seconds, left))
            except Empty:
                if left < seconds:
                    raise

    return get


def use_test_environment() -> None:
    """Set `TEST_ENVIRONMENT` for this process and the kernels that it starts."""
    os.environ.update(TEST_ENVIRONMENT)
