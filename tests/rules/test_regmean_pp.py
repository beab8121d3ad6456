"""RegMean++ against RegMean, and against a model in which what is merged before is plain to see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.method import Gram
from bench.method.recorded import RecordedTask
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.statistics.gram import gram
from tests.helpers.toy import REGISTRY, Models, chain, close, rule


class Linears(RecordedTask):
    """x goes through blocks.0 and then blocks.1, without anything between them; statistics are taken where asked."""

    images: torch.Tensor
    places: list[Weights]

    def statistic(self, key: str, *, at: Weights | None = None, **_: Any) -> dict[str, Gram]:
        assert key == "gram"
        assert at is not None
        self.places.append(at)
        first, x = at.tensors()["blocks.0.weight"], self.images
        y = x @ first.T
        return {"blocks.0.weight": Gram(x.T @ x, len(x)), "blocks.1.weight": Gram(y.T @ y, len(y))}


def two_tasks(seed: int) -> tuple[Weights, list[Linears]]:
    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(seed)
    shapes = {"pos_embed": (1, 1, 3), "blocks.1.weight": (3, 4), "blocks.0.weight": (4, 5), "blocks.0.bias": (4,)}
    theta_0 = Weights.of({name: noise(*shape) for name, shape in shapes.items()})
    tasks = []
    for t in (1, 2):
        theta = theta_0 + Weights.of({name: noise(*shape) for name, shape in shapes.items()})
        task = Linears(t, theta_0, theta_0, theta_0, theta)
        task.images, task.places = noise(30, 5), []
        tasks.append(task)
    return theta_0, tasks


def test_block_by_block_behind_merged_blocks_and_past_tasks_as_they_were() -> None:
    theta_0, tasks = two_tasks(0)
    pp = rule("regmean_pp", a=0.9, ridge=0.0)
    pp.begin(theta_0)
    served = [pp.merge(task) for task in tasks]
    assert close(served[0], tasks[0].trained, 1e-10)

    def scaled(x: torch.Tensor) -> torch.Tensor:
        G = x.T @ x / len(x)
        return 0.9 * G + 0.1 * torch.diag(G.diagonal())

    def least_squares(inputs: list[torch.Tensor], name: str) -> torch.Tensor:
        grams = [scaled(x) for x in inputs]
        targets = [G @ task.trained.tensors()[name].T for G, task in zip(grams, tasks, strict=True)]
        return torch.linalg.solve(sum(grams), sum(targets)).T

    first = least_squares([task.images for task in tasks], "blocks.0.weight")
    got = served[1].tensors()
    torch.testing.assert_close(got["blocks.0.weight"], first)
    # Task 1's inputs of the second block are those behind theta_hat_1 = theta*_1; task 2's are behind theta_hat_2.
    behind = [tasks[0].images @ tasks[0].trained.tensors()["blocks.0.weight"].T, tasks[1].images @ first.T]
    torch.testing.assert_close(got["blocks.1.weight"], least_squares(behind, "blocks.1.weight"))
    for name in ("pos_embed", "blocks.0.bias"):
        torch.testing.assert_close(got[name], (tasks[0].trained.tensors()[name] + tasks[1].trained.tensors()[name]) / 2)


def test_statistics_are_taken_behind_what_is_merged_and_otherwise_in_the_new_model() -> None:
    theta_0, tasks = two_tasks(1)
    pp = rule("regmean_pp")
    pp.begin(theta_0)
    served = [pp.merge(task) for task in tasks][1].tensors()
    new, (one, two) = tasks[1].trained.tensors(), (place.tensors() for place in tasks[1].places)
    for place, merged in ((one, {"pos_embed"}), (two, {"pos_embed", "blocks.0.weight", "blocks.0.bias"})):
        for name in new:
            torch.testing.assert_close(place[name], served[name] if name in merged else new[name])
    assert tasks[1].scalars["blocks"] == 2
    assert tasks[1].scalars["without_gram"] == 2


def test_without_blocks_it_is_regmean() -> None:
    models = Models.draw(0)
    pairs = zip(chain(rule("regmean_pp"), models), chain(rule("regmean"), models), strict=True)
    assert all(close(a, b, 1e-10) for a, b in pairs)


@pytest.mark.parametrize("kind", ["backbone", "full_backbone"])
def test_on_images_the_first_block_is_regmeans_and_the_last_is_not(request: Any, stream: Any, kind: str) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    theta_0 = backbone.pretrained

    class OnImages(RecordedTask):
        def statistic(self, key: str, *, at: Weights | None = None, **_: Any) -> dict[str, Gram]:
            return gram(backbone, at or self.trained, stream.train_images[stream.tasks[self.t - 1].train[:48]])

    served = {}
    for key in ("regmean", "regmean_pp"):
        merging = rule(key)
        merging.begin(theta_0)
        for t in (1, 2):
            generator = torch.Generator().manual_seed(t)
            theta = theta_0.map(lambda v, g=generator: v + 0.02 * torch.randn(v.shape, generator=g))  # type: ignore[misc]
            served[key] = merging.merge(OnImages(t, theta_0, theta_0, theta_0, theta)).tensors()
    one, other = served["regmean"], served["regmean_pp"]
    keys = [name for name in one if name.startswith("blocks.0.attn.qkv.k.weight")]
    assert keys
    if kind == "backbone":  # nothing before it is merged
        torch.testing.assert_close(one[keys[0]], other[keys[0]], rtol=1e-5, atol=1e-6)
    last = [name for name in one if name.endswith("attn.qkv.k.weight")][-1]
    assert not torch.allclose(one[last], other[last], rtol=1e-4, atol=1e-6)


def test_it_is_named_as_our_form() -> None:
    named = REGISTRY.resolve("regmean_pp")
    assert (named.status, named.title) == ("variant", "RegMean++ (continual form)")
    assert named.build()[1].needs == ("gram", "gram@elsewhere")
