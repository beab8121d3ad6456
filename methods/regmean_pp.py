"""RegMean++ (Nguyen et al., arXiv:2508.03121): RegMean with the inputs that the merged layers before give; our stream.

RegMean (arXiv:2212.09849) merges each linear layer for the inputs X_i that it has in task i's own model. In the merged
model it is fed by merged layers, so RegMean++ merges block after block and takes X_i as what comes out of the merged
blocks before, then through task i's own block:

    W^T = (sum_i G_i)^-1 sum_i G_i W_i^T,    G_i = X_i^T X_i / n_i,  off-diagonal entries scaled by a

The paper has the images of all tasks when it merges. On a stream those of past tasks are gone, so **this is our
continual form**: G_t of the current task is taken where theta_hat_t already stands in the blocks before and theta*_t in
the rest; G_i of a past task stays as it was taken, behind theta_hat_i. The sums of G_i and of (W_i - theta_0) G_i are
carried, as RegMean's. A merge takes one pass over the images for every block.

What the paper leaves open, and our choice: as in regmean.py (a 0.95, 256 unlabelled images, evaluation mode, a ridge of
1e-6, float64); so has FusionBench's regmean_plusplus the first two, without a ridge. There embeddings are averaged
first, and what follows the last block is left as pretrained; here tensors outside of blocks (told by their names) are
averaged first too, and matrices outside of them are merged last. Without recognised blocks it is RegMean.

Published numbers: CLIP, 8 to 20 tasks, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Gram, Rule, Task, Weights, method, option, rule, state
from bench.method.tools.spectral import accumulate, solved

if TYPE_CHECKING:
    from torch import Tensor


@rule("regmean_pp")
class RegMeanPP(Rule):
    """Regression of layer outputs, block by block behind what is merged already."""

    data = "unlabelled"
    a: float = option(
        0.95, help="factor of the off-diagonal Gram entries", ge=0, le=1, search=[0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
    )
    samples: int = option(256, help="images of the current task", ge=1)
    ridge: float = option(1e-6, help="drawn to the mean, relative to the Gram's mean diagonal", ge=0)
    G: dict[str, Tensor] = state(dict)  #: by tensor, sum of G_i; of tensors that are averaged, their number
    M: dict[str, Tensor] = state(dict)  #: by tensor, sum of (W_i - theta_0) G_i

    @property
    def needs(self) -> tuple[str, ...]:
        """What the layers are fed, the first block's by what training gave, the others' by merged layers."""
        return ("gram", "gram@elsewhere")

    def merge(self, task: Task) -> Weights:
        """Merge the blocks from the input on."""
        parts, served = stages(task.trained), task.trained
        for names in filter(None, parts):
            averaged = names is parts[0]
            grams: dict[str, Gram] = {} if averaged else task.statistic("gram", samples=self.samples, at=served)
            matrices = {n: grams[n] for n in names if n in grams and grams[n].sum.dim() == 2}
            moments = {n: self._regular(g.sum / g.rows) for n, g in matrices.items()}
            served = served.with_tensors(self._merged(task, names, moments))
        task.log(without_gram=sum(g.dim() == 0 for g in self.G.values()), blocks=len(parts) - 2)
        return served

    def _merged(self, task: Task, names: list[str], moments: dict[str, Tensor]) -> dict[str, Tensor]:
        """These tensors of theta_hat_t."""
        import torch

        one = torch.ones((), dtype=torch.float64, device=task.trained.vector.device)
        change = (task.trained - task.pretrained).tensors()
        G, M = accumulate(
            {n: self.G[n] for n in names if n in self.G},
            {n: self.M[n] for n in names if n in self.M},
            dict.fromkeys(names, one) | moments,
            Weights.of({n: change[n] for n in names}),
        )
        self.G, self.M = self.G | G, self.M | M
        moved = solved(G, M, lambda G, M: torch.cholesky_solve(M.mT, torch.linalg.cholesky(G)).mT)
        origin = task.pretrained.tensors()
        return {n: origin[n] + moved[n].to(origin[n]) for n in names}

    def _regular(self, G: Tensor) -> Tensor:
        """Off-diagonals scaled, with the ridge; a layer that was fed zeros only is left with a ridge alone."""
        import torch

        d = G.diagonal()
        return self.a * G + torch.diag((1 - self.a) * d + self.ridge * d.mean() + (1e-30 if self.ridge else 0))


def stages(weights: Weights) -> list[list[str]]:
    """Names in the order in which they are merged: what is averaged first, block after block, matrices outside."""
    from bench.method.tools.depth import block_numbers

    names, shapes = weights.layout.names, weights.layout.shapes
    numbers, count = block_numbers(names)
    parts: list[list[str]] = [[] for _ in range(count + 2)]
    for name, shape, number in zip(names, shapes, numbers, strict=True):
        parts[number + 1 if number is not None else -1 if len(shape) == 2 else 0].append(name)
    return parts


method(
    "regmean_pp",
    "plain+regmean_pp@pretrained",
    title="RegMean++ (continual form)",
    paper="arXiv:2508.03121",
    status="variant",
    about="least squares on layer inputs behind merged layers; past tasks' inputs as they were",
)
