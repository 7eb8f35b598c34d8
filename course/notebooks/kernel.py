"""A kernel of this very environment, whatever kernel specs the user has installed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
        yield client


def use_test_environment() -> None:
    """Set `TEST_ENVIRONMENT` for this process and the kernels that it starts."""
    os.environ.update(TEST_ENVIRONMENT)
