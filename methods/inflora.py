"""InfLoRA: Interference-Free Low-Rank Adaptation (arXiv:2404.00228).

LoRA's B is trained alone, from 0; the rows of its A are chosen before task t from what the layer is fed, X_t, outside
the span M of what it was fed before, so that W + B A does to old inputs what W did:

    G_t = X_t^T X_t at the weights where task t begins,    U S V^T = G_t - M M^T G_t,    A = U[:, :r]^T / sqrt(3)

After the task M grows by the leading left singular vectors of G_t - M M^T G_t, G_t now at theta*_t, until

    1 - ||G_t - M M^T G_t||_F^2 / ||G_t||_F^2 >= threshold

As in liangyanshuo/InfLoRA (methods/inflora.py): criteria are of G's singular values (squares of X's) squared, the first
task takes the directions whose running share is below the threshold, at least one. Carries M, for every adapted tensor
up to d_in^2 numbers in float64; the authors' DualGPM stores M or its complement, whichever is smaller: the same span.

Open choices: **the threshold is fixed**, 0.98; the authors raise it from 0.95 or 0.98 to 1 at the last task, and so
need to know how many come. G is of at most 2,048 images in the test view (theirs: all, training view). k and v of a
layer have an M each. Directions that are rounding (1e-6 of the largest) are 0, not arbitrary: where M fills a layer's
inputs it learns no more. Convolutions have no G: their A is drawn, as for `lora_fixed_a`.

Published numbers: a head a task, concatenated, cross-entropy over the current one (class-incremental).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, Trainer, method, option, state, trainer
from bench.method.tools.spectral import svd

if TYPE_CHECKING:
    from torch import Tensor


@trainer("inflora")
class InfLoRA(Trainer):
    """Only B is trained; A lies in what the layer was not fed before."""

    factors = "B"
    threshold: float = option(0.98, help="share of a task's inputs that later tasks must leave alone", gt=0, le=1)
    samples: int = option(2048, help="images that a task's inputs are taken of", ge=1)
    M: dict[str, Tensor] = state(dict)  #: by tensor (d_in, k), orthonormal columns, float64

    @property
    def needs(self) -> tuple[str, ...]:
        """Inputs before and after training."""
        return ("gram",)

    def directions(self, task: Task) -> dict[str, Tensor]:
        """The leading left singular vectors of what is new in the task's inputs, as rows."""
        grams = {name: gram.sum for name, gram in task.gram(self.samples).items() if gram.sum.dim() == 2}
        return {name: svd(self.outside(name, G))[0].mT / 3**0.5 for name, G in grams.items()}

    def learnt(self, task: Task) -> None:
        """Grow M until it holds enough of the task's inputs."""
        import torch

        for name, gram in task.gram(self.samples).items():
            if gram.sum.dim() != 2 or not bool(gram.sum.any()):
                continue
            new = self.outside(name, gram.sum)
            U, s, _ = svd(new)
            total = gram.sum.square().sum()
            held = 1 - new.square().sum() / total
            before = held + (s.square().cumsum(0) - s.square()) / total  # held when a direction's turn comes
            if name in self.M:
                more = int((before < self.threshold).sum())
                self.M[name] = torch.cat([self.M[name], U[:, : min(more, int((s > 0).sum()))]], 1)
            else:
                share = s.square().cumsum(0) / total
                self.M[name] = U[:, : max(1, int((share < self.threshold).sum()))].clone()

    def outside(self, name: str, G: Tensor) -> Tensor:
        """G - M M^T G."""
        M = self.M.get(name)
        return G if M is None else G - M @ (M.mT @ G)


PAPER = "arXiv:2404.00228"
method(
    "inflora", "inflora+last@previous", title="InfLoRA, fixed threshold", paper=PAPER, status="variant",
    about="A outside past inputs, B trained",
)  # fmt: skip
method(
    "inflora_average", "inflora+average@merged", title="InfLoRA, 1/t", paper=PAPER, status="variant",
    about="A outside past inputs, merged",
)  # fmt: skip
