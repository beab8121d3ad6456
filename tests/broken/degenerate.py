"""Broken on purpose: weights of an entry are divided by their sum, which is 0 where all Fishers are."""

from bench.method import Rule, Task, Weights, rule, state


@rule("broken_degenerate")
class Weighted(Rule):
    """sum F_i theta*_i / sum F_i, centred on theta_0, where nothing keeps the denominator from 0."""

    data = "labelled"
    S: Weights = state()
    m: Weights = state()

    @property
    def needs(self) -> tuple[str, ...]:
        """Declared as it should be."""
        return ("fisher:empirical",)

    def merge(self, task: Task) -> Weights:
        """Add to both sums, divide."""
        F = task.fisher("empirical")
        self.S, self.m = self.S + F, self.m + F * (task.trained - task.pretrained)
        return task.pretrained + self.m / self.S
