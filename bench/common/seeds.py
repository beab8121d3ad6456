"""All randomness: numbers derived from what they are for, so that nothing depends on what ran before.

A stream of random numbers is named by (run seed, task content, purpose, ...). Resuming at a task boundary therefore
needs no saved generator, and two methods see the same batches: their difference is a paired one.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive(*parts: int | str) -> int:
    """A 63-bit seed from the parts; equal parts give the same seed on every machine and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def numpy_rng(*parts: int | str) -> np.random.Generator:
    """A NumPy generator for the stream that the parts name."""
    import numpy as np

    return np.random.default_rng(derive(*parts))


def torch_rng(*parts: int | str, device: str = "cpu") -> torch.Generator:
    """A torch generator for the stream that the parts name."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(*parts))
