"""Random streams by name: seeds derived from what they are for, so that nothing depends on what ran before.

A stream of random numbers is named by (purpose, run seed, task content, ...). Resuming at a task boundary therefore
needs no saved generator, and two methods see the same batches: their difference is a paired one. A class order and the
drawing of glyphs have seeds of their own, which a dataset or a protocol gives as plain numbers.

The purposes. Another spelling is another stream, so none is ever renamed:

- ``validation``: which images of a class are held out; of the class and its size alone
- ``image_folder``: which files of a folder are for testing; of their names alone
- ``backbone``: weights that no checkpoint gives
- ``head``: a task's fresh head
- ``the adapter's kind``: the first values of an adapter, for each task or, where A is fixed, for the whole run
- ``trainer``: what a trainer draws, such as a perturbation
- ``batches``: the order of training images, by epoch
- ``augment``: crops, flips and policies of training images, by epoch
- ``rule``: what a rule draws, by the purpose that it names
- ``merge batches``: batches of the current task that a rule reads
- ``validation batches``: batches of validation images that an oracle reads
- ``fisher``: the images of a Fisher diagonal, and labels drawn for it
- ``gram``: the images of Gram matrices
- ``projection``: random features of a ridge head
- ``ridge``: the images that choose a ridge head's strength
- ``refit``: the order of images in refitting heads, by epoch
- ``align``: samples that heads are aligned on, and their order, by epoch
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
