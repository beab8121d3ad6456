"""Base of rules that tune merge coefficients on unlabelled images, by the entropy of what the merged model predicts.

The papers tune on the test images of every task at once, which a continual learner does not have. Here the images are
training images without their labels: fresh batches of the current task, and of each past task a buffer of a few,
kept when it was current (``images=buffer``); or the current task's alone (``images=current``), and then nothing
keeps the coefficients from forgetting the rest. Test images are out of reach in either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

from bench.method.api import Task, TaskVectorRule, Weights, option, state

if TYPE_CHECKING:
    from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Mean over rows of the Shannon entropy, in nats, of softmax(logits (b, classes)); differentiable."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


class EntropyRule(TaskVectorRule):
    """min over coefficients c of sum_{i<=t} H_i(theta(c)) by Adam, the last iterate; H_i is the mean entropy of a batch
    of task i's images under task i's own head.
    """

    data = "unlabelled"
    steps: int = option(500, help="Adam steps on the coefficients", ge=0)
    lr: float = option(1e-3, help="Adam's learning rate", gt=0)
    batch: int = option(16, help="images of each task a step", ge=1)
    images: Literal["buffer", "current"] = option("buffer", help="whose images: of all tasks seen, or the current one")
    keep: int = option(64, help="images kept of each past task", ge=1)
    taus: Tensor = state(list)  #: (t, P); a list, while it is empty
    buffer: list[Tensor] = state(list, images=True)  #: of each past task (keep, C, H, W)

    @property
    def needs(self) -> tuple[str, ...]:
        """Batches without labels."""
        return ("images",)

    def add(self, task: Task) -> None:
        """Keep tau_t as the last row of ``taus``."""
        import torch

        self.taus = torch.stack([*self.taus, self.tau(task).vector])

    def tune(self, task: Task, initial: Tensor, theta: Callable[[Tensor], Weights]) -> Tensor:
        """c after ``steps`` steps from ``initial``; then some of the current task's images are kept for later ones.

        Args:
            task: gives images and logits.
            initial: coefficients of any shape.
            theta: the merged weights, differentiable in them.
        """

        from bench.method.tools.minimise import minimise

        batches, told = self._batches(task), list["Tensor"]()

        def loss(c: Tensor, step: int) -> Tensor:
            total = self._entropies(task, theta(c), next(batches))
            told.append(total.detach())
            return total

        c = minimise(loss, initial, self.steps, self.lr)
        task.log(merge_steps=self.steps)
        if told:
            task.log(entropy_first=float(told[0]), entropy_last=float(told[-1]))
        if told and self.images == "buffer":
            [(x, _)] = task.batches(self.keep, 1)
            self.buffer = [*self.buffer, x]
        return c

    def _batches(self, task: Task) -> Iterator[list[Tensor]]:
        """Of every step, images of each task, the current one last."""
        import torch

        rng = task.rng("exemplars")
        for x, _ in task.batches(self.batch, self.steps):
            yield [
                *(b[torch.from_numpy(rng.choice(len(b), min(self.batch, len(b)), replace=False))] for b in self.buffer),
                x,
            ]

    def _entropies(self, task: Task, weights: Weights, images: list[Tensor]) -> Tensor:
        """The sum over tasks of the mean entropy under the task's own head: one forward pass for all of them."""
        import torch

        if not self.buffer:
            return entropy(task.logits(weights, images[0]))
        rows = task.logits(weights, torch.cat(images), "seen").split([len(x) for x in images])
        own = [task.columns(t) for t in range(1, task.t + 1)]
        return torch.stack([entropy(row[:, c.start : c.stop]) for row, c in zip(rows, own, strict=True)]).sum()
