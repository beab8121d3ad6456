"""How much is left to gain: the best coefficients along D, chosen on validation images of all tasks seen. No paper, and
no continual learner: past images do not exist for one. Ceilings to measure closed forms and 1/t against.

    scalar:  theta_hat_t = h + alpha D,            alpha = argmax over {0, 0.05, .., 1} and 1/t of validation accuracy
    layer:   theta_hat_t = h + sum_l alpha_l D_l,  alpha by Adam on the validation cross-entropy over all classes seen

with h = theta_hat_{t-1}, D = theta*_t - h, and l the adapted tensors; theta_hat_1 = theta*_1.

Choices: the smaller alpha wins a tie. The layers' alpha start at the best scalar, are not bounded, and are discarded
for it where their validation accuracy is lower: an oracle does not serve what its own images rank lower. Both choose
greedily, task by task: a smaller alpha now could pay later, so they are no bound on what any sequence of alpha reaches.
Validation images were trained on under `eval_split: test`, which favours the newest task; under `test_heldout` they
were not. Logged: alpha, the accuracy there, and at 1/t on the same h and D (both on the images that chose).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Rule, Task, Weights, method, option, rule

if TYPE_CHECKING:
    from torch import Tensor


@rule("oracle_scalar")
class OracleScalar(Rule):
    """One alpha for all weights."""

    data = "oracle"

    @property
    def needs(self) -> tuple[str, ...]:
        """Validation images."""
        return ("validation",)

    def merge(self, task: Task) -> Weights:
        """Try them all."""
        if task.t == 1:
            return task.trained
        h, D = task.served, task.trained - task.served
        accuracy = {a: task.accuracy(h + D * a) for a in sorted({1 / task.t, *(i / 20 for i in range(21))})}
        alpha = max(accuracy, key=lambda a: accuracy[a])  # the first of equals
        task.log(alpha=alpha, validation_accuracy=accuracy[alpha], validation_accuracy_average=accuracy[1 / task.t])
        return self.refine(task, h, D, alpha, accuracy[alpha])

    def refine(self, task: Task, h: Weights, D: Weights, alpha: float, accuracy: float) -> Weights:
        """theta_hat_t, given the best scalar and its validation accuracy."""
        return h + D * alpha


@rule("oracle_layer")
class OracleLayer(OracleScalar):
    """An alpha for each adapted tensor."""

    steps: int = option(100, help="Adam steps on alpha", ge=0)
    lr: float = option(0.02, help="Adam's learning rate", gt=0)
    batch: int = option(128, help="validation images a step", ge=1)

    def refine(self, task: Task, h: Weights, D: Weights, alpha: float, accuracy: float) -> Weights:
        """Adam from the best scalar on."""
        from torch.nn.functional import cross_entropy

        from bench.method.tools.minimise import minimise

        batches = task.validation(self.batch, self.steps)

        def loss(alphas: Tensor, step: int) -> Tensor:
            x, columns = next(batches)
            return cross_entropy(task.logits(h + D * D.spread(alphas), x, "seen"), columns)

        alphas = minimise(loss, h.vector.new_full((len(h.layout.names),), alpha), self.steps, self.lr)
        layered = h + D * D.spread(alphas)
        reached = task.accuracy(layered)
        task.log(merge_steps=self.steps, kept_scalar=reached < accuracy, validation_accuracy_scalar=accuracy)
        if reached < accuracy:
            return h + D * alpha
        task.log(alpha=float(alphas.mean()), alpha_sd=float(alphas.std(correction=0)), validation_accuracy=reached)
        return layered


ABOUT = "on validation images of all tasks seen; not a continual learner"
method("oracle_scalar", "plain+oracle_scalar@merged", title="Oracle, one alpha", status="oracle", about=ABOUT)
method("oracle_layer", "plain+oracle_layer@merged", title="Oracle, alpha per tensor", status="oracle", about=ABOUT)
