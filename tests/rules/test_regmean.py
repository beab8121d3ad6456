"""RegMean against reference numbers, and against its own least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.common.errors import UserError
from bench.data.stream import Stream
from bench.method import START, Gram
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.statistics.gram import gram
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds

LAYERS = ("a", "b")


def recordings(models: Models, order: list[int] | None = None) -> list[Recording]:
    return [Recording(models.thetas[i], {"gram": models.grams(i + 1)}) for i in order or range(len(models.thetas))]


def merged(models: Models, known: list[Recording] | None = None, **options: Any) -> Weights:
    return list(merge_stream(rule("regmean", **options), models.theta_0, known or recordings(models)))[-1].served


@pytest.mark.parametrize("name", ["regmean_ratio0.1", "regmean_ratio0.95", "regmean_ratio1.0"])
def test_golden_regmean(golden: Callable[[str], Golden], name: str) -> None:
    g = golden(name)
    hparams, thetas = g.meta["hparams"], g.parts("theta")
    known = [
        Recording(
            theta, {"gram": {f"{layer}.weight": Gram(G * tokens, tokens) for layer, G in g.part(f"gram/{i}").items()}}
        )
        for i, (theta, tokens) in enumerate(zip(thetas, hparams["tokens"], strict=True))
    ]
    for theta_0 in (thetas[0].zeros(), thetas[1] * 0.3):  # the solution does not depend on it
        steps = list(merge_stream(rule("regmean", a=hparams["ratio"], ridge=0.0), theta_0, known))
        g.check(steps[-1].served, g.part("out/theta"))
    assert steps[-1].scalars["without_gram"] == 4
    ridged = merged(Models(thetas[0], thetas, []), known, a=hparams["ratio"])
    assert 0 < (ridged - g.part("out/theta")).norm() < 1e-5


@property_test
@given(seeds, st.permutations(range(4)), st.floats(0, 1))
def test_one_task_equal_models_and_order(seed: int, order: list[int], a: float) -> None:
    models = Models.draw(seed)
    assert close(chain(rule("regmean", a=a), models)[0], models.thetas[0], 1e-8)
    assert close(merged(replace(models, thetas=[models.thetas[1]] * 4), a=a), models.thetas[1], 1e-8)
    assert close(merged(models, a=a), merged(models, recordings(models, order), a=a), 1e-8)


@property_test
@given(seeds)
def test_the_gradient_of_the_least_squares_is_zero_and_other_tensors_are_averaged(seed: int) -> None:
    models = Models.draw(seed)
    got = merged(models, a=1.0, ridge=0.0).tensors()
    for name in LAYERS:
        pulls = [(got[name] - theta.tensors()[name]) @ models.grams(i + 1)[name].sum / 40
                 for i, theta in enumerate(models.thetas)]  # fmt: skip
        assert float(sum(pulls).norm()) < 1e-10 * float(pulls[0].norm())  # type: ignore[union-attr]
    torch.testing.assert_close(got["c"], torch.stack([w.tensors()["c"] for w in models.thetas]).mean(0))


def test_regmean_has_the_authors_factor_at_every_start_and_regmean_fb_fusionbenchs() -> None:
    for start in START:
        for spelling, a in (("regmean", 0.1), ("plain+regmean", 0.1), ("perturb+regmean", 0.1), ("regmean_fb", 0.95)):
            assert REGISTRY.resolve(f"{spelling}@{start}").rule_options["a"] == a


def test_no_off_diagonals_weigh_each_input_on_its_own() -> None:
    models = Models.draw(0)
    got = merged(models, a=0.0, ridge=0.0).tensors()
    for name in LAYERS:
        d = torch.stack([models.grams(i)[name].sum.diagonal() for i in range(1, 5)])[:, None]
        W = torch.stack([w.tensors()[name] for w in models.thetas])
        torch.testing.assert_close(got[name], (d * W).sum(0) / d.sum(0))


def test_tasks_count_alike_however_many_rows_they_have() -> None:
    models = Models.draw(1)
    known = recordings(models)
    known[2].statistics = {
        "gram": {name: Gram(g.sum * 50, g.rows * 50) for name, g in known[2].statistics["gram"].items()}
    }
    assert close(merged(models, known), merged(models), 1e-12)


def test_where_no_data_is_the_ridge_draws_to_the_mean() -> None:
    """Inputs of the second half of the channels are always 0, and layer b is fed zeros only."""
    models = Models.draw(2)
    known = recordings(models)
    for k in known:
        G = k.statistics["gram"]["a"].sum.clone()
        G[3:], G[:, 3:] = 0, 0
        k.statistics = {"gram": {"a": Gram(G, 40), "b": Gram(torch.zeros(4, 4, dtype=torch.float64), 40)}}
    got = merged(models, known).tensors()
    mean = (sum(models.thetas[1:], models.thetas[0]) / 4).tensors()
    torch.testing.assert_close(got["b"], mean["b"])
    trace = torch.stack([k.statistics["gram"]["a"].sum.trace() for k in known])
    W = torch.stack([w.tensors()["a"] for w in models.thetas])
    torch.testing.assert_close(got["a"][:, 3:], torch.einsum("t,toi->oi", trace / trace.sum(), W)[:, 3:])
    assert float((got["a"] - mean["a"])[:, :3].norm()) > 0.01


def test_float32_is_as_good_as_its_rounding() -> None:
    double, single = Models.draw(3), Models.draw(3, dtype=torch.float32)
    got = merged(single)
    assert got.vector.dtype == torch.float32
    assert close(got.map(lambda v: v.double()), merged(double), 1e-6)


def test_what_is_carried_does_not_grow() -> None:
    sizes = []
    for T in (1, 4):
        r = rule("regmean")
        chain(r, Models.draw(0, T))
        sizes.append({name: {k: tuple(v.shape) for k, v in getattr(r, name).items()} for name in ("G", "M")})
    assert sizes[0] == sizes[1]
    assert sizes[0] == {"G": {"a": (5, 5), "b": (4, 4), "c": ()}, "M": {"a": (6, 5), "b": (5, 4), "c": (4,)}}


def test_gram_matrices_that_do_not_fit_are_named() -> None:
    models = Models.draw(0)
    lost, stray, wrong = recordings(models), recordings(models), recordings(models)
    del lost[2].statistics["gram"]["b"]
    stray[0].statistics["gram"]["a.weight"] = stray[0].statistics["gram"]["a"]
    wrong[0].statistics["gram"]["b"] = wrong[0].statistics["gram"]["a"]
    for known, message in (
        (lost, "b has a Gram matrix at some tasks and none at others"),
        (stray, "Gram matrices: unknown tensor 'a.weight'; known: a, b, c"),
        (wrong, r"the Gram matrix of b is \(5, 5\), which does not fit \(5, 4\)"),
        ([Recording(models.thetas[0])], "the rule needs gram; give it"),
    ):
        with pytest.raises(UserError, match=message):
            merged(models, known)


def on_images(backbone: Backbone, stream: Stream, key: str) -> tuple[list[Recording], list[Any]]:
    """Two tasks whose models are theta_0 plus noise, with Gram matrices of their own images."""
    theta_0, known = backbone.pretrained, []
    for t, task in enumerate(stream.tasks, 1):
        generator = torch.Generator().manual_seed(t)
        theta = theta_0.map(lambda v, g=generator: v + 0.02 * torch.randn(v.shape, generator=g))  # type: ignore[misc]
        known.append(Recording(theta, {"gram": gram(backbone, theta, stream.train_images[task.train[:64]])}))
    return known, list(merge_stream(rule(key), theta_0, known))


@pytest.mark.parametrize("key", ["regmean", "lot"])
@pytest.mark.parametrize("kind", ["backbone", "full_backbone"])
def test_layer_outputs_are_nearer_to_the_tasks_than_those_of_the_average(
    request: pytest.FixtureRequest, stream: Stream, kind: str, key: str
) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    known, steps = on_images(backbone, stream, key)
    mean, got = ((known[0].trained + known[1].trained) / 2).tensors(), steps[-1].served.tensors()

    def off(W: dict[str, torch.Tensor], name: str) -> float:
        D = [(W[name] - k.trained.tensors()[name]).double() for k in known]
        return sum(
            float((d @ k.statistics["gram"][name].sum / k.statistics["gram"][name].rows * d).sum())
            for d, k in zip(D, known, strict=True)
        )

    linear = [name for name, g in known[0].statistics["gram"].items() if g.sum.dim() == 2]
    assert len(linear) >= 4
    assert all(off(got, name) < off(mean, name) for name in linear)
    if kind == "full_backbone" and key == "regmean":
        for name in set(got) - set(linear):
            torch.testing.assert_close(got[name], mean[name], rtol=1e-5, atol=1e-6)
