"""RegMean, Dataless Knowledge Fusion by Merging Weights of Language Models (Jin et al., arXiv:2212.09849).

Each linear layer of the merged model should give what each task's model gives on that task's inputs X_i:

    min_W sum_i ||X_i W^T - X_i W_i^T||^2 / n_i   =>   W^T = (sum_i G_i)^-1 sum_i G_i W_i^T,   G_i = X_i^T X_i / n_i

with X_i the n_i rows (images x tokens) that the layer is fed in theta*_i, and the off-diagonal entries of G_i scaled by
a (a = 0 weighs each input on its own). a = 0.1: of the authors' settings (bloomberg/dataless-model-merging) nine have
it, one has 0.9, and those on GLUE leave G_i as it is, a = 1; FusionBench has 0.95 for CLIP (`regmean_fb`, `regmean` of
earlier versions). All other tensors, LayerNorm weights included, are averaged. The sums of G_i and of (W_i - theta_0)
G_i are carried, in float64: centred on theta_0 the solution is the same, and a tensor that was never trained stays
exactly what it was.

What the paper leaves open, and our choice: 256 unlabelled images of the current task (the authors take 1,000 batches),
in evaluation mode; tasks count alike however many rows they have; G_i has a ridge of 1e-6 times the mean of its
diagonal *before* it multiplies W_i, so that where the data says nothing the answer is drawn to the mean of the W_i and
never shrinks (`ridge=0` is the authors' and FusionBench's form). In a run a linear layer whose inputs were not seen is
an error; of recorded weights, a tensor that no Gram matrix is given for is averaged, and `without_gram` in the record
counts all that are averaged.

Published numbers: the paper's are of language models, a classifier a task unless tasks share their labels. In the
merging literature: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import START, Rule, Task, Weights, method, option, rule, state
from bench.method.tools.spectral import accumulate, solved

if TYPE_CHECKING:
    from torch import Tensor


@rule("regmean")
class RegMean(Rule):
    """Regression of every layer's outputs; the mean elsewhere."""

    data, order_invariant = "unlabelled", True
    at_start = {start: {"a": 0.1} for start in START}
    a: float = option(
        0.95, help="factor of the off-diagonal Gram entries", ge=0, le=1, search=[0.1, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
    )
    samples: int = option(256, help="images of the current task", ge=1)
    ridge: float = option(1e-6, help="drawn to the mean, relative to the Gram's mean diagonal", ge=0)
    G: dict[str, Tensor] = state(dict)  #: by tensor, sum of G_i; of tensors that are averaged, their number
    M: dict[str, Tensor] = state(dict)  #: by tensor, sum of (W_i - theta_0) G_i

    @property
    def needs(self) -> tuple[str, ...]:
        """What the layers are fed."""
        return ("gram",)

    def merge(self, task: Task) -> Weights:
        """Add task t to the sums and solve."""
        import torch

        grams = task.gram(self.samples)
        one = torch.ones((), dtype=torch.float64, device=task.trained.vector.device)
        moments = dict.fromkeys(task.trained.layout.names, one)
        moments |= {name: self._regular(g.sum / g.rows) for name, g in grams.items() if g.sum.dim() == 2}
        self.G, self.M = accumulate(self.G, self.M, moments, task.trained - task.pretrained)
        task.log(without_gram=sum(g is one for g in moments.values()))
        # Not linalg.solve: MKL's LU of a batch fails or hangs with more than one thread (torch 2.15). G is definite.
        moved = solved(self.G, self.M, lambda G, M: torch.cholesky_solve(M.mT, torch.linalg.cholesky(G)).mT)
        return task.pretrained + task.pretrained.with_tensors(moved)

    def _regular(self, G: Tensor) -> Tensor:
        """Off-diagonals scaled, with the ridge; a layer that was fed zeros only is left with a ridge alone."""
        import torch

        d = G.diagonal()
        r = self.ridge * d.mean() + (1e-30 if self.ridge else 0)
        return self.a * G + torch.diag((1 - self.a) * d + r)


PAPER = "arXiv:2212.09849"
method("regmean", "plain+regmean@pretrained", title="RegMean", paper=PAPER, about="least squares on layer inputs")
method(
    "regmean_fb",
    "plain+regmean@pretrained:a=0.95",
    title="RegMean (FusionBench)",
    paper=PAPER,
    status="variant",
    about="`regmean` of earlier versions",
)
