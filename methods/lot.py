"""LOT Merging, Layer-wise Optimal Task Vector Merging (arXiv:2505.23859).

The task vector of each layer that disturbs the features of all tasks least, X_k the inputs of the layer in theta*_k on
a few images of task k and T_k its task vector (d_in x d_out):

    T* = argmin_T sum_k ||X_k T - X_k T_k||^2 = (sum_k X_k^T X_k)^+ sum_k X_k^T X_k T_k,   theta_hat = theta_0 + lam T*

The same least squares for a LayerNorm's weight, which multiplies its normalised input x channel by channel, weighs
tau_k by sum x^2; for a bias, which sees a constant 1, by the number of rows. Off the span of the data T* is 0: there
theta_0 stays. At full rank and lam = 1 this is RegMean (arXiv:2212.09849) with a = 1 and Gram matrices that are sums.

The formulas are derived from the objective: neither the paper's equations nor the code that its abstract names
(github.com/SunWenJu123/model-merging) could be read. A third party's summary agrees: pseudo-inverses for linear layers,
weights by feature norms for scales, means for embeddings, 16 to 64 images a task. Whether X_k is taken at theta*_k, as
here, stays open. What else does, and our choice: lam 1 and 64 unlabelled images of each task; eigenvalues of the summed
Gram matrix under 1e-6 of the largest count as 0; a bias weighs by the rows of its own layer's weight; tensors of no
such layer (embeddings, or, of recorded weights, those that no Gram matrix is given for: `without_gram` in the record
counts these) get the plain mean of their task vectors. T_k is measured from theta_0 wherever training began, since
X_k T_k has to give what theta*_k gives (`delta=increment` would fit the last step of it). The two sums are carried, in
float64.

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.spectral import accumulate, solved

if TYPE_CHECKING:
    from torch import Tensor

RCOND = 1e-6


@rule("lot")
class LOT(TaskVectorRule):
    """theta_0 + lam T*, layer by layer."""

    data, order_invariant = "unlabelled", True
    at_start = {"previous": {"delta": "total"}, "merged": {"delta": "total"}}
    lam: float = option(1.0, help="scale of the optimal task vector", ge=0, search=(0.2, 2.0))
    samples: int = option(64, help="images of the current task", ge=1)
    G: dict[str, Tensor] = state(dict)  #: by tensor, sum of X^T X, of sum x^2, or of rows
    M: dict[str, Tensor] = state(dict)  #: by tensor, the sum of those times tau_k

    @property
    def needs(self) -> tuple[str, ...]:
        """What the layers are fed."""
        return ("gram",)

    def merge(self, task: Task) -> Weights:
        """Add task t to the sums and solve."""
        import torch

        grams, one = task.gram(self.samples), torch.ones((), dtype=torch.float64, device=task.trained.vector.device)
        moments = dict.fromkeys(task.trained.layout.names, one)
        biases = {name.removesuffix("weight") + "bias": one * g.rows for name, g in grams.items()}
        moments |= {name: rows for name, rows in biases.items() if name in moments}
        moments |= {name: g.sum for name, g in grams.items()}
        self.G, self.M = accumulate(self.G, self.M, moments, self.tau(task))
        task.log(without_gram=sum(g is one for g in moments.values()))
        best = solved(self.G, self.M, on_the_span)
        return task.pretrained + task.pretrained.with_tensors(best) * self.lam


def on_the_span(G: Tensor, M: Tensor) -> Tensor:
    """M G^+ of stacks (n, o, d) and (n, d, d), eigenvalues of G under 1e-6 of the largest taken as 0."""
    import torch

    values, vectors = torch.linalg.eigh(G)
    inside = values > RCOND * values[:, -1:]
    return (M @ vectors * (inside / values.where(inside, 1))[:, None]) @ vectors.mT


method(
    "lot", "plain+lot@pretrained", title="LOT Merging", paper="arXiv:2505.23859", about="least squares on task vectors"
)
