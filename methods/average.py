"""Running average of the task models.

    theta_hat_t = ((t-1) theta_hat_{t-1} + theta*_t) / t

At start `pretrained` this is the plain mean of independently trained models; at start `merged` it is a moving blend
with weight 1/t on the new model, the baseline that any learnt or closed-form coefficient has to beat.
Carries nothing but t.
"""

from bench.method import Rule, Task, Weights, method, rule


@rule("average")
class Average(Rule):
    """theta_hat_t = theta_hat_{t-1} + (theta*_t - theta_hat_{t-1}) / t."""

    order_invariant = True

    def merge(self, task: Task) -> Weights:
        """One step of the running mean."""
        return task.served + (task.trained - task.served) / task.t


method("average", "plain+average@pretrained", title="Average", status="baseline", about="mean of the task models")
method("average_merged", "plain+average@merged", title="Average (merged)", status="baseline", about="1/t blend")
