"""What a plugin is handed stays as it was.

theta_0 is shared by all cells of a process, and what is trained from it goes into the cache: a plugin that writes into
it would spoil other methods' numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.method.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

ROW = 4096  #: words that are summed before they are weighed by their place


class ChangedInPlaceError(RuntimeError):
    """A plugin wrote into memory that is not its own."""


def checksum(x: Tensor) -> int:
    """64 bits that tell other numbers from these (but for changes that happen to cancel); one pass, no copy.

    The bits are summed as 64-bit integers, row by row, and the rows weighed by their place, so that what changed places
    is seen too. Integers wrap around, so the answer is exact in any order: on a device, with any number of threads.
    """
    import torch

    flat = x.detach().contiguous().reshape(-1).view(torch.uint8)
    cut = len(flat) // 8 * 8
    aligned = flat.storage_offset() % 8 == 0
    words = (flat[:cut] if aligned else flat[:cut].clone()).view(torch.int64)
    whole = len(words) // ROW * ROW
    rows = words[:whole].view(-1, ROW).sum(1)
    place = torch.arange(1, len(rows) + 1, device=x.device)
    return int((rows * place).sum() + words[whole:].sum() + flat[cut:].sum(dtype=torch.int64))


def _seen(x: Tensor) -> tuple[int, int]:
    """The checksum, and torch's count of changes in place, which writes by way of NumPy or ``.data`` go past."""
    return checksum(x), -1 if x.is_inference() else x._version


@contextmanager
def unchanged(who: str, handed: Mapping[str, Weights]) -> Iterator[None]:
    """Compare what a plugin was handed before and after a block that calls it.

    Args:
        who: the plugin, as the error names it.
        handed: by the name that its author knows; of names that share memory the first is told.

    Raises:
        ChangedInPlaceError: something was written into.
    """
    first: dict[tuple[int, int], str] = {}
    for name, weights in handed.items():
        first.setdefault((weights.vector.data_ptr(), weights.vector.numel()), name)
    watched = {name: handed[name].vector for name in first.values()}
    before = {name: _seen(vector) for name, vector in watched.items()}
    yield
    for name, vector in watched.items():
        if _seen(vector) != before[name]:
            raise ChangedInPlaceError(f"{who} changed {name} in place; work on a copy ({name}.detach() is one)")
