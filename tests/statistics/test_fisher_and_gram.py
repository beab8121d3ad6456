from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.common.cache import Store
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream
from bench.method.weights import Weights
from bench.model.backbone import Backbone, SplitQKV
from bench.model.heads import Head, new_head
from bench.run.live_task import LiveTask
from bench.statistics import fisher as module
from bench.statistics import gram as gram_module
from bench.statistics.fisher import LABELLED, OF_IMAGES, balanced_sample, diagonal_fisher
from bench.statistics.gram import gram

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
    empirical, exact = (diagonal_fisher(backbone, point, HEAD, x, y, kind) for kind in module.PER_SAMPLE[:2])
    vector = point.vector.detach().clone().requires_grad_()
    nn.functional.cross_entropy(HEAD(backbone.features(Weights(vector, point.layout), x)), y).backward()
    assert vector.grad is not None
    batch = Weights(vector.grad**2, point.layout)
    assert error(empirical, exact) > 0.1
    assert error(batch, empirical) > 0.5  # squaring after the mean over samples is the classic mistake


# ---- the kinds that imitate others ---------------------------------------------------------------------------------
def naive_of_others(
    backbone: Backbone, at: Weights, x: Tensor, y: Tensor, kind: str, temperature: float, batch: int
) -> Weights:
    """What each reference computes, batch after batch, in float64."""
    total = at.zeros().vector.double()
    batches = list(zip(x.split(batch), y.split(batch), strict=True))
    for xs, ys in batches:
        vector = at.vector.detach().clone().requires_grad_()
        logits = HEAD(backbone.features(Weights(vector, at.layout), xs)) / temperature
        p = torch.softmax(logits.detach(), -1)
        if kind == "mammoth":
            for n, label in enumerate(ys):
                [g] = torch.autograd.grad(cross_entropy(logits[n], label), vector, retain_graph=True)
                total += float(p[n, label]) * g.double() ** 2 / (len(batches) * batch)
            continue
        if kind == "batchmean":
            loss, weight = cross_entropy(logits, ys), 1 / len(batches)
        elif kind == "argmax_batch":
            loss, weight = cross_entropy(logits, logits.argmax(1)), len(xs) / len(x)
        else:
            loss, weight = (p.sqrt() * torch.log_softmax(logits, -1)).sum(), 1 / len(x)
        [g] = torch.autograd.grad(loss, vector)
        total += weight * g.double() ** 2
    return Weights(total.float(), at.layout)


OF_OTHERS = OF_IMAGES[2:]


@pytest.mark.parametrize(("batch", "temperature"), [(8, 1.0), (5, 2.0), (64, 1.0)])
@pytest.mark.parametrize("kind", OF_OTHERS)
def test_kinds_of_others_are_their_loops_with_a_short_last_batch(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor], kind: str, batch: int, temperature: float,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    got = diagonal_fisher(backbone, point, HEAD, *sample, kind, temperature, batch)
    found = error(got, naive_of_others(backbone, point, *sample, kind, temperature, batch))
    record_property("largest_error", found)
    assert found < 2e-5
    assert got.layout == point.layout
    assert bool((got.vector >= 0).all())


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_they_are_their_loops_on_the_whole_model_too(
    full_backbone: Backbone, sample: tuple[Tensor, Tensor], kind: str
) -> None:
    x, y, at = sample[0][:7], sample[1][:7], full_backbone.pretrained
    got = diagonal_fisher(full_backbone, at, HEAD, x, y, kind, 1.0, 3)
    expected = naive_of_others(full_backbone, at, x, y, kind, 1.0, 3)
    for (name, view), reference in zip(got.items(), expected.tensors().values(), strict=True):
        if not name.endswith("qkv.k.bias"):  # zero but for rounding
            assert float((view - reference).norm()) < 2e-5 * float(reference.norm()), name


def test_a_short_last_batch_counts_full_in_mammoth_alone(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor]
) -> None:
    whole, padded = (diagonal_fisher(backbone, point, HEAD, *sample, "mammoth", batch=b) for b in (23, 8))
    assert error(padded * 24, whole * 23) < 1e-6
    one, other = (diagonal_fisher(backbone, point, HEAD, *sample, "empirical", batch=b) for b in (23, 8))
    assert one.digest() == other.digest()


def test_kinds_that_square_batch_gradients_depend_on_the_batch_and_are_per_sample_at_one(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    empirical = diagonal_fisher(backbone, point, HEAD, x, y)
    by_batch = {b: diagonal_fisher(backbone, point, HEAD, x, y, "batchmean", batch=b) for b in (1, 7, 23)}
    assert error(by_batch[1], empirical) < 1e-5
    assert error(by_batch[7], empirical) > 0.3  # the classic mistake, under its own name
    assert error(by_batch[23], by_batch[7]) > 0.3
    with torch.no_grad():
        predicted = HEAD(backbone.features(point, x)).argmax(1)
    argmax = diagonal_fisher(backbone, point, HEAD, x, y, "argmax_batch", batch=1)
    assert error(argmax, diagonal_fisher(backbone, point, HEAD, x, predicted)) < 1e-5
    assert error(argmax, empirical) > 0.1


@pytest.mark.parametrize("kind", OF_IMAGES)
def test_labels_matter_to_the_kinds_that_say_so_alone(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor], kind: str
) -> None:
    x, y = sample
    one, other = (diagonal_fisher(backbone, point, HEAD, x, labels, kind, batch=8) for labels in (y, (y + 1) % 5))
    assert (one.digest() != other.digest()) == (kind in LABELLED)


def test_exact_weighs_the_kinds_of_a_class_each_by_its_probability(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor]
) -> None:
    """mammoth, summed over the five labels that there might be, is exact."""
    x, y = sample
    of_label = [diagonal_fisher(backbone, point, HEAD, x, torch.full_like(y, c), "mammoth", batch=23) for c in range(5)]
    exact = diagonal_fisher(backbone, point, HEAD, x, y, "exact")
    assert error(sum(of_label[1:], of_label[0]), exact) < 1e-5


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
@pytest.mark.parametrize("kind", [*OF_IMAGES, "gram"])
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
    if kind == "gram":
        gram(full_backbone, at, x)
    else:
        diagonal_fisher(full_backbone, at, HEAD, x, y, kind, batch=2)
    assert look() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_failing_pass_leaves_no_hooks(backbone: Backbone, sample: tuple[Tensor, Tensor]) -> None:
    wrong = Head(torch.zeros(5, 63), torch.zeros(5))
    with pytest.raises(RuntimeError):
        diagonal_fisher(backbone, backbone.pretrained, wrong, *sample)
    assert not any(m._forward_hooks for m in backbone.module.modules())


# ---- Gram matrices -------------------------------------------------------------------------------------------------
def inputs_by_hand(backbone: Backbone, at: Weights, x: Tensor) -> dict[str, Tensor]:
    """What every Linear and LayerNorm is fed, one image at a time, as rows in float64."""
    model = copy.deepcopy(backbone.module)
    model.load_state_dict(at.tensors(), strict=False)
    rows: dict[str, list[Tensor]] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear | nn.LayerNorm):
            part.register_forward_pre_hook(
                lambda _, inputs, name=name: rows.setdefault(f"{name}.weight", []).extend(inputs[0].reshape(-1, inputs[0].shape[-1]).double())
            )  # fmt: skip
    with torch.no_grad():
        for image in x:
            model(backbone.pixels(image[None]))
    return {name: torch.stack(found) for name, found in rows.items()}


def test_gram_of_key_and_value_is_the_product_of_their_inputs(
    backbone: Backbone, point: Weights, sample: tuple[Tensor, Tensor], record_property: Callable[[str, object], None]
) -> None:
    x = sample[0]
    found, rows = gram(backbone, point, x), inputs_by_hand(backbone, point, x)
    assert tuple(found) == point.layout.names  # k and v of four blocks
    worst = 0.0
    for name, g in found.items():
        X = rows[name]
        assert g.rows == len(X) == 23 * 16
        assert g.sum.shape == (64, 64)
        assert g.sum.dtype == torch.float64
        assert not g.sum.is_inference()
        worst = max(worst, float((g.sum - X.T @ X).norm() / (X.T @ X).norm()))
    record_property("largest_error", worst)
    assert worst < 1e-5
    assert torch.equal(found["blocks.0.attn.qkv.k.weight"].sum, found["blocks.0.attn.qkv.v.weight"].sum)
    at_start = gram(backbone, backbone.pretrained, x)["blocks.3.attn.qkv.k.weight"].sum
    assert not torch.allclose(at_start, found["blocks.3.attn.qkv.k.weight"].sum, rtol=1e-2)


def test_gram_of_the_whole_model_has_every_linear_and_layer_norm_and_nothing_else(
    full_backbone: Backbone, sample: tuple[Tensor, Tensor]
) -> None:
    x, at = sample[0][:6], full_backbone.pretrained
    found, rows = gram(full_backbone, at, x), inputs_by_hand(full_backbone, at, x)
    assert set(found) == set(rows)
    assert {"blocks.0.mlp.fc1.weight", "blocks.0.attn.proj.weight", "blocks.1.norm2.weight"} <= set(found)
    assert not {"pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.bias"} & set(found)
    norms = {n for n, part in full_backbone.module.named_modules() if isinstance(part, nn.LayerNorm)}
    assert any(len(n) for n in norms)
    for name, g in found.items():
        X = rows[name]
        assert g.rows == len(X)
        if name.removesuffix(".weight") in norms:
            eps = full_backbone.module.get_submodule(name.removesuffix(".weight")).eps
            normal = (X - X.mean(1, keepdim=True)) / (X.var(1, unbiased=False, keepdim=True) + eps).sqrt()
            expected = (normal**2).sum(0)
        else:
            expected = X.T @ X
        assert g.sum.shape == expected.shape
        assert float((g.sum - expected).norm()) < 1e-5 * float(expected.norm()), name


def test_gram_does_not_depend_on_how_the_images_are_cut_and_adds_up(
    full_backbone: Backbone, sample: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, at = sample[0], full_backbone.pretrained
    whole, parts = gram(full_backbone, at, x), [gram(full_backbone, at, part) for part in (x[:9], x[9:])]
    monkeypatch.setattr(gram_module, "PASS_IMAGES", 7)
    cut = gram(full_backbone, at, x)
    for name, g in whole.items():
        assert cut[name].rows == g.rows == parts[0][name].rows + parts[1][name].rows
        for other in (cut[name].sum, parts[0][name].sum + parts[1][name].sum):
            assert float((other - g.sum).norm()) < 1e-6 * float(g.sum.norm())


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
    for ask in (
        lambda: diagonal_fisher(backbone, backbone.pretrained, HEAD, *sample),
        lambda: gram(backbone, backbone.pretrained, sample[0]),
    ):
        with pytest.raises(RuntimeError, match=r"no statistics for .*blocks\.0\.attn\.qkv\.k\.weight"):
            ask()
    assert not any(m._forward_hooks for m in backbone.module.modules())


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

    monkeypatch.setattr("bench.statistics.fisher.diagonal_fisher", spy)
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
