from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bench import statistics as module
from bench.backbone import Backbone, SplitQKV
from bench.config import ProtocolConfig
from bench.heads import Head, new_head
from bench.statistics import balanced_sample, diagonal_fisher
from bench.store import Store
from bench.stream import Stream
from bench.task import LiveTask
from bench.weights import Weights

HEAD = new_head(5, 64, 0.1, "cpu", 0)


@pytest.fixture(scope="module")
def sample(stream: Stream) -> tuple[Tensor, Tensor]:
    """23 images of task 1 and their labels within its head."""
    index = stream.tasks[0].train[::27][:23]
    return stream.train_images[index], stream.train_columns[index]


@pytest.fixture(scope="module")
def point(backbone: Backbone) -> Weights:
    noise = torch.randn(backbone.pretrained.vector.shape, generator=torch.Generator().manual_seed(0))
    return backbone.pretrained.map(lambda v: v + 0.02 * noise)


def naive(backbone: Backbone, at: Weights, head: Head, x: Tensor, y: Tensor, kind: str, temperature: float) -> Weights:
    """One backward pass a sample (and a class): what the definition says, in float64."""
    total = at.zeros().vector.double()
    for image, label in zip(x, y, strict=True):
        vector = at.vector.detach().clone().requires_grad_()
        log_p = torch.log_softmax(head(backbone.features(Weights(vector, at.layout), image[None]))[0] / temperature, 0)
        cases = (
            [(int(label), 1.0)]
            if kind == "empirical"
            else [(c, float(log_p[c].detach().exp())) for c in range(len(log_p))]
        )
        for c, weight in cases:
            [g] = torch.autograd.grad(log_p[c], vector, retain_graph=True)
            total += weight * g.double() ** 2
    return Weights((total / len(x)).float(), at.layout)


def error(got: Weights, expected: Weights) -> float:
    """Largest over tensors of ||got - expected|| / ||expected||."""
    return float(((got - expected).norms() / expected.norms()).max())


# ---- against the definition ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_lora_fisher_is_the_per_sample_loop(
    backbone: Backbone,
    point: Weights,
    sample: tuple[Tensor, Tensor],
    kind: str,
    temperature: float,
    record_property: Callable[[str, object], None],
) -> None:
    got = diagonal_fisher(backbone, point, HEAD, *sample, kind, temperature)
    expected = naive(backbone, point, HEAD, *sample, kind, temperature)
    record_property("largest_error", error(got, expected))
    assert error(got, expected) < 5e-6
    assert got.layout == point.layout
    assert bool((got.vector >= 0).all())


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_full_fisher_with_norms_embeddings_and_convolution_is_the_per_sample_loop(
    full_backbone: Backbone, sample: tuple[Tensor, Tensor], kind: str
) -> None:
    x, y = sample[0][:7], sample[1][:7]
    at = full_backbone.pretrained
    got, expected = (f(full_backbone, at, HEAD, x, y, kind, 1.0) for f in (diagonal_fisher, naive))
    names = set(at.layout.names)
    assert names >= {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "blocks.0.norm1.bias"}
    for name, view in got.items():
        reference = expected.tensors()[name]
        if name.endswith("qkv.k.bias"):  # softmax does not see a shift of all keys: zero but for rounding
            assert float(view.abs().max()) < 1e-9 * float(expected.vector.max())
            continue
        assert float((view - reference).norm()) < 5e-6 * float(reference.norm()), name


def test_empirical_and_exact_and_the_squared_mean_gradient_are_three_things(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    empirical, exact = (diagonal_fisher(backbone, point, HEAD, x, y, kind) for kind in module.KINDS[:2])
    vector = point.vector.detach().clone().requires_grad_()
    nn.functional.cross_entropy(HEAD(backbone.features(Weights(vector, point.layout), x)), y).backward()
    assert vector.grad is not None
    batch = Weights(vector.grad**2, point.layout)
    assert error(empirical, exact) > 0.1
    assert error(batch, empirical) > 0.5  # squaring after the mean over samples is the classic mistake


# ---- what it must not depend on ------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize(("images", "held"), [(1, None), (7, None), (22, None), (256, 1), (7, 64 * 64 * 3)])
def test_fisher_does_not_depend_on_how_the_samples_are_cut(
    backbone: Backbone,
    point: Weights,
    sample: tuple[Tensor, Tensor],
    kind: str,
    images: int,
    held: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = diagonal_fisher(backbone, point, HEAD, *sample, kind)
    monkeypatch.setattr(module, "PASS_IMAGES", images)
    if held is not None:
        monkeypatch.setattr(module, "HELD", held)
    assert error(diagonal_fisher(backbone, point, HEAD, *sample, kind), expected) < 1e-6


@pytest.mark.parametrize("held", [1, 2**16])
def test_full_fisher_does_not_depend_on_it_either(
    full_backbone: Backbone, sample: tuple[Tensor, Tensor], held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, at = sample[0][:5], sample[1][:5], full_backbone.pretrained
    expected = diagonal_fisher(full_backbone, at, HEAD, x, y)
    monkeypatch.setattr(module, "HELD", held)
    got = diagonal_fisher(full_backbone, at, HEAD, x, y)
    assert (got - expected).norm() < 1e-6 * expected.norm()


def test_sample_order_leaves_fisher_alone_and_means_add_up(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    whole = diagonal_fisher(backbone, point, HEAD, x, y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert error(diagonal_fisher(backbone, point, HEAD, x[order], y[order]), whole) < 1e-6
    parts = [diagonal_fisher(backbone, point, HEAD, x[s], y[s]) * len(x[s]) for s in (slice(0, 9), slice(9, None))]
    assert error((parts[0] + parts[1]) / len(x), whole) < 1e-6


def test_repeats_are_bit_equal(backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor]) -> None:
    first, second = (diagonal_fisher(backbone, point, HEAD, *sample).digest() for _ in range(2))
    assert first == second


# ---- what it must leave alone --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_nothing_is_changed(
    full_backbone: Backbone, sample: tuple[Tensor, Tensor], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, at, x, y = full_backbone.module, full_backbone.pretrained, sample[0][:3], sample[1][:3]
    parameter = next(model.parameters())
    monkeypatch.setattr(parameter, "grad", torch.ones_like(parameter))
    monkeypatch.setattr(next(model.children()), "training", True)
    state = torch.get_rng_state()

    def look() -> list[object]:
        return [
            at.digest(),
            Weights.of({n: t.clone() for n, t in model.state_dict().items()}).digest(),
            Weights.of({"w": HEAD.weight, "b": HEAD.bias}).digest(),
            [None if p.grad is None else float(p.grad.sum()) for p in model.parameters()],
            [p.requires_grad for p in model.parameters()],
            [m.training for m in model.modules()],
            [len(m._forward_hooks) for m in model.modules()],
            x.sum().item(),
        ]

    before = look()
    diagonal_fisher(full_backbone, at, HEAD, x, y, kind)
    assert look() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failing_pass_leaves_no_hooks(backbone: Backbone, sample: tuple[Tensor, Tensor]) -> None:
    wrong = Head(torch.zeros(5, 63), torch.zeros(5))
    with pytest.raises(RuntimeError):
        diagonal_fisher(backbone, backbone.pretrained, wrong, *sample)
    assert not any(m._forward_hooks for m in backbone.module.modules())


# ---- mistakes are errors -------------------------------------------------------------------------------------------
def test_an_unknown_kind_is_named(backbone: Backbone, sample: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="unknown Fisher kind 'hessian'; known: empirical, exact"):
        diagonal_fisher(backbone, backbone.pretrained, HEAD, *sample, "hessian")


def test_a_layer_that_is_never_called_is_an_error_and_not_silently_zero(
    backbone: Backbone, sample: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def functional(self: SplitQKV, x: Tensor) -> Tensor:
        return torch.cat([nn.functional.linear(x, p.weight, p.bias) for p in (self.q, self.k, self.v)], dim=-1)

    monkeypatch.setattr(SplitQKV, "forward", functional)
    with pytest.raises(RuntimeError, match=r"no statistics for .*blocks\.0\.attn\.qkv\.k\.weight"):
        diagonal_fisher(backbone, backbone.pretrained, HEAD, *sample)


# ---- balanced samples ----------------------------------------------------------------------------------------------
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.integers(1, 80),
    st.integers(0, 99),
)
def test_a_balanced_sample_is_as_even_as_the_classes_allow(per_class: list[int], count: int, seed: int) -> None:
    columns = torch.cat([torch.full((n,), c) for c, n in enumerate(per_class)] + [torch.full((9,), 99)])
    index = torch.arange(sum(per_class))  # the last nine images belong to another task
    first, again = (
        balanced_sample(index, columns, count, torch.Generator().manual_seed(seed)).tolist() for _ in range(2)
    )
    assert first == again
    assert len(first) == len(set(first)) == min(count, len(index))
    assert set(first) <= set(index.tolist())
    taken = torch.bincount(columns[first], minlength=len(per_class))
    for c, n in enumerate(per_class):
        # A class gives fewer than another only where it has no more.
        assert int(taken[c]) == n or int(taken[c]) >= int(taken.max()) - 1


def test_a_balanced_sample_depends_on_the_generator() -> None:
    columns = torch.arange(200) % 4
    draws = [balanced_sample(torch.arange(200), columns, 40, torch.Generator().manual_seed(s)).tolist() for s in (0, 1)]
    assert draws[0] != draws[1]


# ---- as a rule asks for it -----------------------------------------------------------------------------------------
@pytest.fixture
def task(stream: Stream, backbone: Backbone, protocol: ProtocolConfig, point: Weights, tmp_path: Path) -> LiveTask:
    few = protocol.model_copy(update={"fisher_samples": 24})
    at = backbone.pretrained
    return LiveTask("labelled", stream, stream.tasks[1], backbone, few, [HEAD, HEAD], 3, Store(tmp_path),
                    at, at, at, point, {})  # fmt: skip


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Weights, Tensor, Tensor]]:
    """Every call of the estimator: (point, images, labels)."""
    calls: list[tuple[Weights, Tensor, Tensor]] = []

    def spy(backbone: Backbone, at: Weights, head: Head, x: Tensor, y: Tensor, *rest: object) -> Weights:
        calls.append((at, x, y))
        return diagonal_fisher(backbone, at, head, x, y, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("bench.task.diagonal_fisher", spy)
    return calls


def test_a_tasks_fisher_is_of_its_own_images_at_theta_star_and_kept(
    task: LiveTask, point: Weights, passes: list[tuple[Weights, Tensor, Tensor]]
) -> None:
    first = task.fisher()
    [(at, x, y)] = passes
    assert at is point
    assert len(x) == 24
    assert sorted(torch.bincount(y).tolist()) == [4, 5, 5, 5, 5]
    again = task.fisher()
    assert len(passes) == 1  # from the store
    assert again.digest() == first.digest()
    task.store = Store(task.store.root, enabled=False)
    assert task.fisher().digest() == first.digest()
    assert len(passes) == 2
    task.store = Store(task.store.root)
    elsewhere = task.fisher(at=task.pretrained)
    assert len(passes) == 3
    assert elsewhere.digest() != first.digest()
    assert task.fisher("exact").digest() != first.digest()
    assert len(passes) == 4


def test_a_caller_without_gradients_gets_the_same_fisher(task: LiveTask) -> None:
    task.store = Store(task.store.root, enabled=False)
    first = task.fisher()
    with torch.no_grad():
        assert task.fisher().digest() == first.digest()
    assert first.vector.dtype == torch.float32
    assert not first.vector.requires_grad
