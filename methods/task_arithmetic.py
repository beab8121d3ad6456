"""Task arithmetic (Ilharco et al., "Editing Models with Task Arithmetic", arXiv:2212.04089).

    theta_hat_t = theta_0 + lam * sum_{i<=t} tau_i,    tau_i = theta*_i - theta_0

carried as the running sum. lam = 0.3 was tuned by others for 8 CLIP tasks: with T growing the norm inflates.
`over_t` divides lam by t: with lam 1 that is the plain average.

What the paper leaves open is what a task vector is where training does not start at theta_0 (`delta`): `increment` =
theta*_t - start_t, what this task's training added (our default), or `total` = theta*_t - theta_0, the default at start
`previous` as MagMax (arXiv:2407.06322) reads it. At start `pretrained` both are tau_t.

Published numbers: CLIP, a zero-shot head a task, task id given (8 tasks); T5, without heads.
"""

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state


@rule("task_arithmetic")
class TaskArithmetic(TaskVectorRule):
    """theta_0 + lam * sum of task vectors."""

    order_invariant = True
    lam: float = option(0.3, help="scale of the sum", ge=0, search=(0.05, 1.5))
    over_t: bool = option(False, help="use lam / t")
    total: Weights = state()

    def merge(self, task: Task) -> Weights:
        """Add this task's vector to the sum."""
        self.total = self.total + self.tau(task)
        return task.pretrained + self.total * (self.lam / task.t if self.over_t else self.lam)


method(
    "task_arithmetic",
    "plain+task_arithmetic@pretrained",
    title="Task arithmetic",
    paper="arXiv:2212.04089",
    about="theta_0 + 0.3 * sum of task vectors",
)
