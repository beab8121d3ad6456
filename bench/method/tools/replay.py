"""Base of trainers that keep labelled images of past tasks: which are kept, and how a step draws from them.

Reservoir sampling (Vitter 1985; Riemer et al., arXiv:1810.11910): the n-th image of the stream takes a free place, or
where there is none the place r = randint(0, n) if r is one. So at any time every image seen has the same chance to be
in the buffer. As in Mammoth (utils/buffer.py), but **filled after a task**, each of its images once in random order: a
training may come out of the cache, so it cannot fill the buffer. While task t is learnt the buffer therefore holds
images of tasks 1..t-1 alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method.api import Step, Task, Trainer, option, state

if TYPE_CHECKING:
    from torch import Tensor

ALL = 2**31  #: more images than a task has


class Replay(Trainer):
    """Old heads are trained on with the new one, in one softmax over all classes seen."""

    heads = "seen"
    keep: int = option(200, help="images kept of all past tasks together", ge=1)
    minibatch: int = option(32, help="images drawn from them a step", ge=1)
    images: Tensor = state(list, images=True)  #: (kept, C, H, W) uint8; a list, while it is empty
    columns: Tensor = state(list)  #: (kept,) their classes among all classes seen
    met: int = state(0)  #: images seen so far

    def fill(self, task: Task) -> tuple[list[int], Tensor]:
        """Let task t's images into the buffer; gives the places that were taken and the images (n, C, H, W) in them."""
        [(x, y)] = task.batches(ALL, 1, labelled=True)
        assert y is not None
        rng, taken = task.rng("reservoir"), dict[int, int]()
        for i, n in enumerate(range(self.met, self.met + len(x))):
            place = n if n < self.keep else int(rng.integers(n + 1))
            if place < self.keep:
                taken[place] = i
        self.met += len(x)
        places, chosen = list(taken), list(taken.values())
        new, size = x[chosen], min(self.met, self.keep)
        self.images = grown(self.images, new, places, size)
        self.columns = grown(self.columns, y[chosen] + task.columns(task.t).start, places, size)
        return places, new

    def draw(self, step: Step) -> Tensor:
        """Places (n,) of a minibatch, without repetition."""
        import torch

        size = min(self.minibatch, len(self.images))
        return torch.from_numpy(step.rng.choice(len(self.images), size, replace=False)).to(self.columns.device)


def grown(kept: Tensor, new: Tensor, places: list[int], size: int) -> Tensor:
    """``size`` rows: those kept (an empty list at first), and the new ones in their places."""
    rows = new.new_empty(size, *new.shape[1:])
    if len(kept):
        rows[: len(kept)] = kept
    rows[places] = new
    return rows
