"""What a trainer sees of one optimiser step: batch, weights, logits of any head under any weights. Torch-free."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from bench.method.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

StepHeads = Literal["old", "seen"]


class Step(Protocol):
    """One optimiser step of task t, handed to ``Trainer.loss``."""

    t: int  #: 1 for the first task
    weights: Weights  #: where this step's loss is taken, with its graph
    pixels: Tensor  #: (b, channels, size, size): the batch as the model is shown it
    columns: Tensor  #: (b,) int64: its classes, among all classes seen
    rng: np.random.Generator  #: the one that ``Trainer.weights`` draws from

    @property
    def served(self) -> Weights:
        """theta_hat_{t-1}; theta_0 at t = 1.

        Raises:
            PermissionError: the trainer does not declare ``reads_served``, so that its trainings would be shared by
                rules that serve something else.
        """
        ...

    def view(self, images: Tensor, purpose: str = "view") -> Tensor:
        """A training view (n, channels, size, size) of stored images uint8 (n, C, H, W), drawn for ``purpose``."""
        ...

    def logits(self, weights: Weights, pixels: Tensor, heads: StepHeads) -> Tensor:
        """Logits (n, classes) on the scale of the loss (divided by the training temperature), differentiable.

        ``heads``: "old", of the tasks before, as they were when this one began (where tasks share a head: that one);
        "seen", of all, those that are trained with their graph. Logits of the step's own ``pixels`` at its own
        ``weights`` cost no second pass.

        Raises:
            ValueError: old heads are asked for at the first task.
        """
        ...
