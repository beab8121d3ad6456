"""Sequential fine-tuning: no merging. theta_hat_t = theta*_t, and each task starts where the last one ended.

`lora_fixed_a` draws LoRA's A once for the whole run and trains only B, so that all updates of a layer share one random
space of inputs: another sequential baseline, as cheap, that a merging rule has to beat.
"""

from bench.method import Rule, Task, Trainer, Weights, method, rule, trainer


@rule("last")
class Last(Rule):
    """theta_hat_t = theta*_t."""

    def merge(self, task: Task) -> Weights:
        """Serve what was trained."""
        return task.trained


@trainer("fixed_a")
class FixedA(Trainer):
    """LoRA with A random and fixed over all tasks; only B is trained."""

    factors = "B"


method("finetune", "plain+last@previous", title="Sequential", status="baseline", about="sequential fine-tuning")
method(
    "lora_fixed_a",
    "fixed_a+last@previous",
    title="Sequential, A fixed",
    status="baseline",
    about="only LoRA's B trained",
)
