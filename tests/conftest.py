"""Settings that must be in place before any test imports what they are about."""

import os

import torch

if not torch.cuda.is_available():
    # Triton reads it when it is imported: without a GPU its kernels run in the interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")
