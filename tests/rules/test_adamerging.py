"""AdaMerging: fused weights, entropy and gradients of reference code; its definition written out naively."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.method import Task
from bench.method.recorded import RecordedTask, merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds

AdaMerging: Any = REGISTRY.rules["adamerging"]
granularities = pytest.mark.parametrize("granularity", ["taskwise", "layerwise"])


def beginning_with(coefficients: Tensor, **options: Any) -> Any:
    class Given(AdaMerging):
        def initial(self, task: Task) -> Tensor:
            return coefficients[: task.t]

    return Given(**options)


def golden_run(g: Golden, granularity: str, **options: Any) -> Weights:
    """What merge serves after the last task, beginning with the file's coefficients."""
    lam = torch.from_numpy(g.array("lam_task")[:, None] if granularity == "taskwise" else g.array("lam_layer"))
    theta_0 = g.part("theta0")
    assert list(theta_0.layout.names) == g.meta["hparams"]["order"]
    fused = beginning_with(lam, granularity=granularity, images="current", **options)
    return merge_recorded(fused, theta_0, [theta_0 + tau for tau in g.parts("tau")])[-1]


class Spy:
    """Stands in for the optimiser: keeps the loss and its gradient at the initial coefficients, moves nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.losses: list[Tensor] = []
        self.gradients: list[Tensor] = []
        monkeypatch.setattr("bench.method.tools.minimise.minimise", self)

    def __call__(self, loss: Callable[[Tensor, int], Tensor], params: Tensor, steps: int, lr: float) -> Tensor:
        params = params.detach().clone().requires_grad_()
        self.losses.append(loss(params, 0))
        self.gradients.append(torch.autograd.grad(self.losses[-1], params)[0])
        return params.detach()


# ---- reference numbers ---------------------------------------------------------------------------------------------
@granularities
def test_golden_adamerging_fuse(golden: Callable[[str], Golden], granularity: str) -> None:
    g = golden("adamerging_fuse")
    g.check(golden_run(g, granularity, steps=0), g.part(f"out/{granularity.replace('wise', '_wise')}/theta"))


def reference_entropy(logits: Tensor) -> Tensor:
    """FusionBench's: of log(p + 1e-8)."""
    p = logits.softmax(-1)
    return -(p * (p + 1e-8).log()).sum(-1).mean()


@granularities
@pytest.mark.parametrize("theirs", [True, False])
def test_golden_adamerging_fuse_entropy_and_gradient(
    golden: Callable[[str], Golden], granularity: str, theirs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the file's tolerance with the reference's log(p + 1e-8), and ours of log-softmax within what that adds."""
    g = golden("adamerging_fuse")
    layer, x = g.meta["hparams"]["layer"], torch.from_numpy(g.array("x"))

    class OneLayer(RecordedTask):
        def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
            assert not labelled
            yield from [(x, None)] * steps

        def logits(self, weights: Weights, x: Tensor, heads: str | int = "current") -> Tensor:
            w = weights.tensors()
            return x @ w[layer].T + w[layer.replace("weight", "bias")]

    monkeypatch.setattr("bench.method.recorded.RecordedTask", OneLayer)
    if theirs:
        monkeypatch.setattr("bench.method.tools.entropy.entropy", reference_entropy)
    spy, out = Spy(monkeypatch), f"out/{granularity.replace('wise', '_wise')}"
    g.check(golden_run(g, granularity, steps=1), g.part(f"{out}/theta"))
    entropy, gradient = spy.losses[-1].detach(), spy.gradients[-1]
    wanted = torch.from_numpy(g.array(f"{out}/grad_lam")).view_as(gradient)
    if theirs:
        g.check(entropy, g.array(f"{out}/entropy"))
        g.check(gradient, wanted.numpy())
    else:
        torch.testing.assert_close(float(entropy), float(g.array(f"{out}/entropy")), rtol=0, atol=12 * 1.01e-8)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-7)


# ---- identities ----------------------------------------------------------------------------------------------------
@granularities
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["pretrained", "previous", "merged"])
def test_no_steps_are_task_arithmetic_to_the_last_bit(granularity: str, dtype: torch.dtype, start: str) -> None:
    models = Models.draw(0, dtype=dtype)
    delta = "total" if start == "previous" else "increment"
    one = chain(AdaMerging(steps=0, granularity=granularity, delta=delta), models, start)
    assert [w.digest() for w in one] == [
        w.digest() for w in chain(rule("task_arithmetic", lam=0.3, delta=delta), models, start)
    ]


@granularities
@property_test
@given(seeds, st.integers(1, 4))
def test_the_gradient_is_the_product_of_the_weight_gradient_and_the_task_vector(
    granularity: str, seed: int, t: int
) -> None:
    """With the entropy of every image under its own task's head, one forward pass a task."""
    models = Models.draw(seed, T=t)
    with pytest.MonkeyPatch.context() as monkeypatch:
        spy = Spy(monkeypatch)
        adamerging = AdaMerging(steps=1, batch=5, keep=5, granularity=granularity)
        served = chain(adamerging, models, "pretrained")[-1]
    task, W = models.task(t, served), served.map(lambda v: v.requires_grad_())
    past = adamerging.buffer[:-1]  # all five of each are drawn, in some order
    [(x, _)] = task.batches(5, 1)
    total = torch.zeros((), dtype=torch.float64)
    for i, images in enumerate([*past, x], 1):
        p = task.logits(W, images, i).softmax(-1)
        total = total - (p * p.log()).sum(-1).mean()
    g = Weights(torch.autograd.grad(total, W.vector)[0], W.layout)
    assert float(spy.losses[-1].detach()) == pytest.approx(float(total.detach()), rel=1e-10)
    for k, theta in enumerate(models.thetas):
        dots = g.dots(theta - models.theta_0)
        expected = dots.sum()[None] if granularity == "taskwise" else dots
        torch.testing.assert_close(spy.gradients[-1][k], expected, rtol=1e-8, atol=1e-10)


def lambdas(served: Weights, models: Models) -> Tensor:
    """By tensor, of the first task."""
    tau = models.thetas[0] - models.theta_0
    return (served - models.theta_0).dots(tau) / tau.dots(tau)


def test_lambda_stays_in_the_unit_interval_only_where_it_is_clamped() -> None:
    models = Models.draw(3, T=1)
    for lr in (0.05, 2.0):
        clamped, free = (
            lambdas(chain(AdaMerging(steps=4, lr=lr, clamp=clamp), models)[0], models) for clamp in (True, False)
        )
        assert bool(((clamped > -1e-9) & (clamped < 1 + 1e-9)).all())
        if lr == 0.05:
            torch.testing.assert_close(clamped, free, rtol=0, atol=1e-12)
        else:
            assert bool(((free < -0.1) | (free > 1.1)).any())


def test_layers_have_a_lambda_each_and_tasks_one() -> None:
    models = Models.draw(4, T=1)
    layer, task = (
        lambdas(chain(AdaMerging(steps=20, lr=0.01, granularity=g), models)[0], models)
        for g in ("layerwise", "taskwise")
    )
    assert float(task.max() - task.min()) < 1e-9
    assert abs(float(task[0]) - 0.3) > 0.01
    assert float(layer.max() - layer.min()) > 0.01


def test_without_steps_the_order_of_the_tasks_says_nothing() -> None:
    models = Models.draw(5)
    other = Models(models.theta_0, models.thetas[::-1], models.fishers)
    assert close(*(chain(AdaMerging(steps=0), m, "pretrained")[-1] for m in (models, other)))
