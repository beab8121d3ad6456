"""The blend of CMM ("Toward a Holistic Approach to Continual Model Merging", arXiv:2509.23592), alone.

Training of task t begins at theta_hat_{t-1}; theta_hat_1 = theta*_1, and then, entry by entry,

    theta_hat_t = [(1 - alpha) F_{t-1} theta_hat_{t-1} + alpha G_t theta*_t] / [(1 - alpha) F_{t-1} + alpha G_t]
    F_t = (1 - alpha) F_{t-1} + alpha G_t,    F_1 = G_1

with G_t the optimiser's own second moment after task t, which costs nothing: unlike CoFiMA's, F remembers all tasks.
It carries F (P). alpha = 0.4.

The paper also trains in the tangent space at theta_0 and aligns features after merging. Both are missing here, so this
is `cmm_blend`, never CMM. Our choices: G is an exponential average (decay 0.999) of the squared gradient of the dense
weights that training records, divided by 1 - 0.999^n, since under LoRA Adam's moments belong to the factors A and B and
without that division they are those of short trainings made small; where F and G are 0 the blend is
(1 - alpha) theta_hat_{t-1} + alpha theta*_t, as the authors' code (VietHoang1512/CMM) has it for tensors without them.
"""

from bench.method import Rule, Task, Weights, method, option, rule, state


@rule("cmm_blend")
class CMMBlend(Rule):
    """Blend by an average of squared gradients."""

    alpha: float = option(
        0.4, help="weight of the new model, and of its squared gradients", ge=0, le=1, search=(0.1, 0.9)
    )
    F: Weights = state()

    @property
    def record(self) -> tuple[str, ...]:
        """The squared gradient that training keeps."""
        return ("grad_sq",)

    def merge(self, task: Task) -> Weights:
        """Blend, then average the squared gradients."""
        G = task.recorded["grad_sq"][-1].to(str(task.trained.vector.device))
        if task.t == 1:
            self.F = G
            return task.trained
        old, new = self.F * (1 - self.alpha), G * self.alpha
        self.F = old + new
        total = self.F.vector
        share = (new.vector / total).where(total > 0, self.alpha)
        return task.served + (task.trained - task.served) * share


method(
    "cmm_blend",
    "plain+cmm_blend@merged",
    title="CMM's blend",
    paper="arXiv:2509.23592",
    status="variant",
    about="without tangent-space training and feature alignment",
)
