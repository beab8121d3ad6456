"""MagMax (Marczak et al., arXiv:2407.06322), and the controls of its public code (danielm1405/magmax).

Tasks are trained one after the other (start `previous`), tau_i = theta*_i - theta_0, and entry by entry

    theta_hat_t = theta_0 + lam tau_{i*},    i* = argmax_{i<=t} |tau_i|;    lam = 0.5

The running maximum is all it carries (P), and equals the batch form bit for bit. Where magnitudes are equal the later
task wins, as in that code.

* `randmix`: i* is drawn uniformly, lam = 1. Streaming: the new task replaces an entry with probability 1/t, which
  leaves every task with 1/t. The draw is from the stream of (run, task, tensor's name).
* `maxabs_ind`: MagMax over independent trainings (start `pretrained`).

Published numbers: CLIP, frozen text rows of all classes as one head (never trained), class-incremental, no task id.
"""

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.sparsify import draw


@rule("magmax")
class MagMax(TaskVectorRule):
    """theta_0 + lam * the task vectors' entries of largest magnitude."""

    order_invariant = True  # up to equal magnitudes
    lam: float = option(0.5, help="scale of the merged task vector", ge=0, search=(0.1, 2.0))
    largest: Weights = state()

    def merge(self, task: Task) -> Weights:
        """Take over what the new task vector has larger."""
        tau = self.tau(task).vector
        self.largest = self.largest.map(lambda v: tau.where(tau.abs() >= v.abs(), v))
        return task.pretrained + self.largest * self.lam


@rule("randmix")
class RandMix(TaskVectorRule):
    """theta_0 + lam * a task vector's entries, the task drawn entry by entry."""

    lam: float = option(1.0, help="scale of the mixed task vector", ge=0, search=(0.1, 2.0))
    chosen: Weights = state()

    def merge(self, task: Task) -> Weights:
        """Replace each entry with probability 1/t."""
        tau = self.tau(task)
        new = draw(tau, 1 / task.t, lambda name: task.rng(f"randmix {name}"))
        self.chosen = self.chosen.map(lambda v: tau.vector.where(new, v))
        return task.pretrained + self.chosen * self.lam


PAPER = "arXiv:2407.06322"
method("magmax", "plain+magmax@previous", title="MagMax", paper=PAPER, about="largest change of any task wins")
method("maxabs_ind", "plain+magmax@pretrained", title="MaxAbs", paper=PAPER, status="variant")
method("randmix", "plain+randmix@previous", title="RandMix", paper=PAPER, status="variant", about="a random task wins")
