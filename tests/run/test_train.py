from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.common.cache import Store
from bench.common.seeds import derive
from bench.config.files import load_protocol
from bench.config.schema import ProtocolConfig, SuiteConfig, TrainConfig
from bench.data.dataset import Dataset
from bench.data.stream import Stream
from bench.method import Trainer
from bench.method.weights import Weights
from bench.model.adapters.lora import LoRA
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate, new_head
from bench.plan.grid import expand
from bench.registry import Registry
from bench.run.evaluate import count, predict
from bench.run.task_models import TrainedHere
from bench.run.train import Learnt, _batches, _rate, train
from bench.run.workbench import Workbench

Train = Callable[..., Learnt]


@pytest.fixture(scope="module")
def run(backbone: Backbone, stream: Stream, protocol: ProtocolConfig) -> Train:
    """Train tasks (by default the first) from theta_0, everything replaceable."""

    def go(
        trainer: Trainer | None = None,
        tasks: slice = slice(0, 1),
        run_seed: int = 0,
        record: tuple[str, ...] = (),
        start: Weights | None = None,
        model: Backbone = backbone,
        on: Stream = stream,
        **fields: Any,
    ) -> Learnt:
        trainer = trainer or Trainer()
        trainer.begin(model.pretrained)
        changed = protocol.model_copy(update={"train": protocol.train.model_copy(update=fields)})
        return train(model, on, on.tasks[tasks], trainer, start or model.pretrained, changed, run_seed, record)

    return go


@pytest.fixture(scope="module")
def plain(run: Train) -> Learnt:
    return run(record=("snapshots:4",))


def bits(learnt: Learnt) -> list[str]:
    return [learnt.weights.digest(), *(Weights.of({"w": h.weight, "b": h.bias}).digest() for h in learnt.heads)]


# ---- repeatable, and what it depends on ----------------------------------------------------------------------------
def test_two_runs_are_bit_equal_whatever_the_global_generators_did(run: Train, plain: Learnt) -> None:
    torch.randn(5)
    np.random.seed(1)  # noqa: NPY002
    again = run()
    assert bits(again) == bits(plain)
    assert again.onset == plain.onset
    assert bits(run(run_seed=1)) != bits(plain)


def test_full_fine_tuning_is_repeatable_too(run: Train, full_backbone: Backbone) -> None:
    first, second = (run(model=full_backbone, lr=1e-3) for _ in range(2))
    assert bits(first) == bits(second)
    moved = {n for n, view in (first.weights - full_backbone.pretrained).items() if bool(view.any())}
    assert moved == set(first.weights.layout.names)


def test_a_tasks_training_does_not_depend_on_its_place_in_the_stream(
    run: Train, digits: Dataset, stream: Stream, plain: Learnt
) -> None:
    """The same classes in the same order, first in one class order and second in another: the same bits."""
    order = stream.class_order
    turned = Stream(digits, 2, class_order_seed=1, order_kind=[*order[5:], *order[:5]])
    assert turned.tasks[1].classes == stream.tasks[0].classes
    assert bits(run(tasks=slice(1, 2), on=turned)) == bits(plain)


def test_run_seed_draws_batches_head_and_a_anew_and_leaves_the_stream_alone(stream: Stream) -> None:
    config, content = TrainConfig(epochs=1, lr=1, head_lr=1), stream.tasks[0].content
    first, other = (torch.cat(list(_batches(stream.tasks[0].train, config, seed, content))) for seed in (0, 1))
    assert not torch.equal(first, other)
    assert torch.equal(first.sort().values, other.sort().values)
    assert derive("lora", 0, content) != derive("lora", 1, content)
    assert not torch.equal(new_head(5, 4, 1, "cpu", 0, content).weight, new_head(5, 4, 1, "cpu", 1, content).weight)


# ---- the loop ------------------------------------------------------------------------------------------------------
def test_every_image_is_seen_once_an_epoch_and_the_remainder_counts(stream: Stream, plain: Learnt) -> None:
    index = stream.tasks[0].train
    config = TrainConfig(epochs=3, batch=64, lr=1, head_lr=1)
    batches = list(_batches(index, config, 0, "content"))
    per_epoch = math.ceil(len(index) / 64)
    assert len(index) % 64 != 0
    assert len(batches) == 3 * per_epoch
    assert plain.steps == per_epoch == 10
    epochs = [torch.cat(batches[i * per_epoch : (i + 1) * per_epoch]) for i in range(3)]
    assert all(torch.equal(e.sort().values, index.sort().values) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert [len(b) for b in batches[:per_epoch]] == [64] * 9 + [len(index) % 64]


def test_the_loop_is_adamw_on_the_papers_loss(
    run: Train, backbone: Backbone, stream: Stream, protocol: ProtocolConfig, plain: Learnt
) -> None:
    """The same steps written out, with a plain optimiser."""
    [task], config = stream.tasks[:1], protocol.train
    lora = backbone.adapter(backbone.pretrained, "AB", derive("lora", 0, task.content))
    head = new_head(5, backbone.dim, protocol.head.init_std, "cpu", 0, task.content)
    theirs = [head.weight.requires_grad_(), head.bias.requires_grad_()]
    optimiser = torch.optim.AdamW([{"params": theirs, "lr": config.head_lr},
                                   {"params": lora.parameters, "lr": config.lr}], weight_decay=0)  # fmt: skip
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=plain.steps)
    for batch in _batches(task.train, config, 0, task.content):
        logits = head(backbone.features(lora.weights(), stream.train_images[batch]))
        loss = cross_entropy(logits, stream.train_columns[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cosine.step()
    moved = plain.weights - backbone.pretrained
    assert (lora.weights().detach() - plain.weights).norm() < 1e-3 * moved.norm()
    torch.testing.assert_close(plain.heads[0].weight, head.weight.detach(), rtol=0, atol=1e-4)
    assert moved.norm() > 0


@pytest.mark.parametrize("total", [1, 10, 200])
def test_cosine_rate_is_torchs(total: int) -> None:
    config = TrainConfig(epochs=1, lr=1, head_lr=1, schedule="cosine")
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=total)
    for step in range(total):
        assert _rate(config, step, total) == pytest.approx(cosine.get_last_lr()[0], abs=1e-9)
        optimiser.step()
        cosine.step()


def test_warm_up_rises_linearly_to_the_full_rate_and_the_rest_falls() -> None:
    cosine = TrainConfig(epochs=1, lr=1, head_lr=1, warmup_steps=4)
    rates = [_rate(cosine, step, 14) for step in range(14)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b > 0 for a, b in pairwise(rates[4:]))
    assert rates[9] == pytest.approx(0.5)  # half-way through what warm-up left
    constant = TrainConfig(epochs=1, lr=1, head_lr=1, warmup_steps=2, schedule="constant")
    assert [_rate(constant, step, 5) for step in range(5)] == [0.5, 1, 1, 1, 1]
    assert _rate(TrainConfig(epochs=1, lr=1, head_lr=1, warmup_steps=50), 9, 10) == 0.2  # longer than the task


def test_schedule_and_warm_up_reach_the_optimiser(run: Train, plain: Learnt, backbone: Backbone) -> None:
    assert bits(run(schedule="constant")) != bits(plain)
    slow = run(warmup_steps=1_000_000)
    assert 0 < (slow.weights - backbone.pretrained).norm() < 1e-3 * (plain.weights - backbone.pretrained).norm()


def test_onset_is_recorded_at_0_10_and_50_and_is_the_losss_own(
    run: Train, backbone: Backbone, stream: Stream, protocol: ProtocolConfig, plain: Learnt, registry: Registry
) -> None:
    long = run(epochs=6)  # 60 steps
    for told in long.onset.values():
        assert list(told) == ["0", "10", "50"]
        assert all(math.isfinite(v) and v > 0 for v in told.values())
    assert long.onset["loss"]["50"] < long.onset["loss"]["0"]
    assert list(plain.onset["loss"]) == ["0"]  # 10 steps: there is no step 10
    task = stream.tasks[0]
    batch = next(_batches(task.train, protocol.train, 0, task.content))
    head = new_head(5, backbone.dim, protocol.head.init_std, "cpu", 0, task.content)
    point = backbone.pretrained.map(lambda v: v.clone().requires_grad_())
    loss = cross_entropy(head(backbone.features(point, stream.train_images[batch])), stream.train_columns[batch])
    loss.backward()
    assert point.vector.grad is not None
    assert plain.onset["loss"]["0"] == pytest.approx(loss.item(), rel=1e-6)
    assert plain.onset["grad_norm"]["0"] == pytest.approx(float(point.vector.grad.norm()), rel=1e-5)

    class Pulled(Trainer):
        """A penalty with a large gradient at the start."""

        def penalty(self, theta: Weights) -> Tensor:
            return 1e3 * (theta - self.pretrained + 1).dots(theta).sum() + 1e3 * theta.sum()

    assert run(Pulled()).onset["loss"]["0"] == plain.onset["loss"]["0"]
    assert run(Pulled()).onset["grad_norm"]["0"] == pytest.approx(plain.onset["grad_norm"]["0"], rel=1e-6)


def test_onset_measurement_changes_no_bit(run: Train, plain: Learnt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.run.train.ONSET", ())
    assert bits(run()) == bits(plain)


def test_snapshots_are_equally_spaced_and_end_with_the_final_weights(run: Train, plain: Learnt) -> None:
    snapshots = plain.recorded["snapshots"]
    assert len(snapshots) == 4
    assert snapshots[-1].digest() == plain.weights.digest()
    assert len({s.digest() for s in snapshots}) == 4
    assert not any(s.vector.requires_grad for s in snapshots)
    every = run(record=("snapshots:10",)).recorded["snapshots"]
    steps = [[e.digest() for e in every].index(s.digest()) + 1 for s in snapshots]
    assert steps == [round(k * 10 / 4) for k in (1, 2, 3, 4)] == [2, 5, 8, 10]
    assert run().recorded == {}
    assert bits(run()) == bits(plain)  # recording changes nothing
    many = run(record=("snapshots:25",)).recorded["snapshots"]
    assert len(many) == 10  # more than there are steps: each step once
    with pytest.raises(ValueError, match="unknown by-product 'gradients'"):
        run(record=("gradients",))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_grad_sq_is_adams_second_moment_of_the_dense_gradient(
    run: Train, backbone: Backbone, stream: Stream, protocol: ProtocolConfig, temperature: float
) -> None:
    """The same ten steps written out; LoRA's factors are trained, and the dense weight's gradient is recorded."""
    [task], config = stream.tasks[:1], protocol.train
    learnt = run(record=("grad_sq",), temperature=temperature)
    lora = backbone.adapter(backbone.pretrained, "AB", derive("lora", 0, task.content))
    head = new_head(5, backbone.dim, protocol.head.init_std, "cpu", 0, task.content)
    theirs = [head.weight.requires_grad_(), head.bias.requires_grad_()]
    optimiser = torch.optim.AdamW([{"params": theirs, "lr": config.head_lr},
                                   {"params": lora.parameters, "lr": config.lr}], weight_decay=0)  # fmt: skip
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=learnt.steps)
    average = torch.zeros(backbone.pretrained.vector.shape, dtype=torch.float64)
    for batch in _batches(task.train, config, 0, task.content):
        W = lora.weights()
        logits = head(backbone.features(W, stream.train_images[batch])) / temperature
        loss = cross_entropy(logits, stream.train_columns[batch])
        [dense] = torch.autograd.grad(loss, W.vector, retain_graph=True)
        average = 0.999 * average + 0.001 * dense.double() ** 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cosine.step()
    expected = average / (1 - 0.999**learnt.steps)
    [got] = learnt.recorded["grad_sq"]
    assert got.layout == learnt.weights.layout
    assert bool((got.vector >= 0).all())
    assert float((got.vector.double() - expected).norm()) < 1e-3 * float(expected.norm())
    assert 0.5 < float(got.sum()) / float(expected.sum()) < 2


def test_grad_sq_of_one_gradient_again_and_again_is_its_square(run: Train, stream: Stream, backbone: Backbone) -> None:
    """Bias-corrected: without a learning rate, and all images in one batch, the gradient is the same at each step."""
    learnt = run(record=("grad_sq",), lr=0.0, head_lr=0.0, batch=10_000, epochs=3)
    [task] = stream.tasks[:1]
    head = new_head(5, backbone.dim, 0.02, "cpu", 0, task.content)
    point = learnt.weights.map(lambda v: v.clone().requires_grad_())
    logits = head(backbone.features(point, stream.train_images[task.train]))
    [g] = torch.autograd.grad(cross_entropy(logits, stream.train_columns[task.train]), point.vector)
    assert learnt.steps == 3
    assert (learnt.recorded["grad_sq"][0] - Weights(g**2, point.layout)).norm() < 1e-4 * float((g**2).norm())


def test_recording_grad_sq_changes_no_bit(run: Train, registry: Registry, full_backbone: Backbone) -> None:
    for key, options in (("plain", {}), ("perturb", {"eps": 0.5})):
        told = [run(registry.trainers[key](**options), record=r)
                for r in ((), ("grad_sq",), ("grad_sq", "snapshots:2"))]  # fmt: skip
        assert len({tuple(bits(learnt)) for learnt in told}) == 1
        assert told[0].onset == told[1].onset
        assert [sorted(learnt.recorded) for learnt in told] == [[], ["grad_sq"], ["grad_sq", "snapshots"]]
        assert told[1].recorded["grad_sq"][0].digest() == told[2].recorded["grad_sq"][0].digest()
    with_it, without = (run(model=full_backbone, lr=1e-3, record=r) for r in (("grad_sq",), ()))
    assert bits(with_it) == bits(without)


def test_grad_sq_leaves_the_penalty_out_and_is_zero_where_nothing_is_adapted(run: Train, registry: Registry) -> None:
    class Pulled(Trainer):
        """A penalty with a large gradient."""

        def penalty(self, theta: Weights) -> Tensor:
            return (theta * 1e3).sum()

    # The penalty moves the weights, so only the first step can be compared: one batch, one epoch.
    one, other = (run(t, record=("grad_sq",), batch=10_000).recorded["grad_sq"][0] for t in (Trainer(), Pulled()))
    assert (one - other).norm() < 1e-5 * one.norm()
    frozen = run(registry.trainers["frozen"](), record=("grad_sq",))
    assert not bool(frozen.recorded["grad_sq"][0].vector.any())


def test_by_products_lie_in_the_store_with_the_training(stream: Stream, tmp_path: Path) -> None:
    """What was recorded is loaded again to the last bit; a training that lacks what is asked for is done again."""
    suite = SuiteConfig(
        key="test", protocol="embedded", datasets=["digits"], tasks=[2], methods=["average@pretrained"], seeds="1"
    )
    [cell], _ = expand(suite, Registry.load(), tmp_path, [], {"train.epochs": 1, "per_dataset": {}})
    bench = Workbench(tmp_path, tmp_path, Store(tmp_path / "cache"))
    trainer, backbone = cell.method.build()[0], bench.backbone(cell)
    trainer.begin(backbone.pretrained)

    def ask(*record: str) -> tuple[Learnt, bool]:
        models = TrainedHere(cell, bench.store, stream, backbone, trainer, record)
        model = models.of(stream.tasks[0], backbone.pretrained, backbone.pretrained, [])
        return model.learnt, model.spent > 0

    def by_products(learnt: Learnt) -> dict[str, list[str]]:
        return {kind: [w.digest() for w in copies] for kind, copies in learnt.recorded.items()}

    first, trained = ask("grad_sq", "snapshots:2")
    assert trained
    for record in (("grad_sq", "snapshots:2"), ("grad_sq",), ()):
        again, trained = ask(*record)
        assert not trained
        assert bits(again) == bits(first)
        assert by_products(again) == by_products(first)
        assert again.recorded["grad_sq"][0].layout == first.weights.layout
    more, trained = ask("grad_sq", "snapshots:5")
    assert trained
    assert bits(more) == bits(first)
    assert by_products(more)["grad_sq"] == by_products(first)["grad_sq"]


def test_training_learns(run: Train, backbone: Backbone, stream: Stream) -> None:
    learnt = run(epochs=3)
    [predicted], _ = predict(backbone, learnt.weights, concatenate(learnt.heads), stream, stream.tasks[:1], 100)
    correct, total = count(predicted, stream, stream.tasks[0])
    assert correct > 0.6 * total  # chance is 20 %
    assert all(not h.weight.requires_grad for h in learnt.heads)


@pytest.mark.parametrize("fields", [{"lr": 1e30}, {"head_lr": 1e38}])
def test_divergence_is_an_error_with_advice(run: Train, fields: dict[str, float]) -> None:
    with pytest.raises(FloatingPointError, match=r"training of task 1 diverged; lower train\.lr"):
        run(**fields)


# ---- trainers ------------------------------------------------------------------------------------------------------
def test_joint_differs_from_joint_local_and_both_train_one_head_a_task(
    run: Train, registry: Registry, stream: Stream
) -> None:
    joint, local = (run(registry.trainers[k](), tasks=slice(0, 2)) for k in ("joint", "joint_local"))
    for learnt in (joint, local):
        assert [len(h.bias) for h in learnt.heads] == [5, 5]
        assert learnt.steps == math.ceil(len(stream.train_images) / 64)
    assert bits(joint) != bits(local)
    # At the start all logits are near zero: ln 10 against ln 5.
    assert joint.onset["loss"]["0"] == pytest.approx(math.log(10), rel=0.15)
    assert local.onset["loss"]["0"] == pytest.approx(math.log(5), rel=0.15)


def test_own_softmax_on_one_task_is_plain_training(run: Train, registry: Registry, plain: Learnt) -> None:
    assert bits(run(registry.trainers["joint_local"]())) == bits(plain)


def test_own_softmax_does_not_combine_with_label_smoothing(run: Train, registry: Registry) -> None:
    """Smoothing would spread over the other tasks' columns, which are at -inf: an infinite loss."""
    with pytest.raises(ValueError, match="do not combine"):
        run(registry.trainers["joint_local"](), label_smoothing=0.1)


class Watch:
    """Keeps every adapter that a backbone gives out."""

    def __init__(self, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
        self.adapters: list[LoRA] = []
        give = backbone.adapter

        def spy(*arguments: Any) -> Any:
            adapter = give(*arguments)
            assert isinstance(adapter, LoRA)
            self.adapters.append(adapter)
            self.first = [a.detach().clone() for a in adapter.A]
            return adapter

        monkeypatch.setattr(backbone, "adapter", spy)


def test_fixed_a_is_one_draw_for_all_tasks_and_only_b_is_trained(
    run: Train, registry: Registry, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(backbone, monkeypatch)
    trainer = registry.trainers["fixed_a"]
    one = run(trainer())
    assert torch.equal(watch.adapters[0].A[0], watch.first[0])
    two = run(trainer(), tasks=slice(1, 2), start=one.weights)
    first, second = watch.adapters
    assert torch.equal(first.A[0], second.A[0])
    assert not torch.equal(first.B[0], second.B[0])
    # So everything learnt lies in the rows of the one A.
    rows = torch.linalg.qr(first.A[0].double().mT)[0]
    delta = torch.stack(list((two.weights - backbone.pretrained).tensors().values())).double()
    assert float((delta - delta @ rows @ rows.mT).norm()) < 1e-5 * float(delta.norm())
    run(trainer(), run_seed=1)
    assert not torch.equal(first.A[0], watch.adapters[2].A[0])


def test_a_trained_a_is_drawn_anew_for_each_task(
    run: Train, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(backbone, monkeypatch)
    run()
    before = watch.first
    assert not torch.equal(watch.adapters[0].A[0], before[0])  # it was trained
    run(tasks=slice(1, 2))
    assert not torch.equal(watch.first[0], before[0])


def test_frozen_leaves_the_weights_and_trains_the_head(
    run: Train, registry: Registry, backbone: Backbone, stream: Stream, protocol: ProtocolConfig
) -> None:
    frozen = registry.trainers["frozen"]
    learnt = run(frozen(), record=("snapshots:2",))
    assert learnt.weights.digest() == backbone.pretrained.digest()
    assert learnt.weights.vector is not backbone.pretrained.vector
    assert learnt.onset["grad_norm"] == {}
    fresh = new_head(5, backbone.dim, protocol.head.init_std, "cpu", 0, stream.tasks[0].content)
    assert not torch.equal(learnt.heads[0].weight, fresh.weight)
    assert learnt.steps == run().steps  # the head budget of every method


def test_every_method_begins_with_the_same_head_and_sees_the_same_batches(run: Train, registry: Registry) -> None:
    """Comparisons are paired: the loss before the first step is the same number for all."""
    losses = {run(registry.trainers[k]()).onset["loss"]["0"] for k in ("plain", "perturb", "gauss", "frozen")}
    assert len(losses) == 1


# ---- predictions and counts ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def two_heads(run: Train) -> tuple[Weights, list[Head]]:
    first = run()
    second = run(tasks=slice(1, 2), start=first.weights)
    return second.weights, [*first.heads, *second.heads]


@pytest.mark.parametrize("batch", [1, 7, 64, 10_000])
def test_counts_do_not_depend_on_the_batch(
    backbone: Backbone, stream: Stream, two_heads: tuple[Weights, list[Head]], batch: int
) -> None:
    weights, heads = two_heads
    part = Stream.__new__(Stream)
    part.__dict__ |= stream.__dict__
    tasks = [t.__class__(**{**t.__dict__, "test": t.test[: 101 + 3 * t.t]}) for t in stream.tasks]  # 104 and 107

    def counts(batch: int) -> list[tuple[int, int]]:
        told = predict(backbone, weights, concatenate(heads), part, tasks, batch)
        return [count(p, part, t) for kind in told for p, t in zip(kind, tasks, strict=True)]

    assert counts(batch) == counts(250)
    assert [total for _, total in counts(batch)] == [104, 107] * 2


def test_predictions_are_argmax_over_seen_and_over_the_true_tasks_columns(
    backbone: Backbone, stream: Stream, two_heads: tuple[Weights, list[Head]]
) -> None:
    weights, heads = two_heads
    everywhere, within = predict(backbone, weights, concatenate(heads), stream, stream.tasks, 100)
    again = predict(backbone, weights, concatenate(heads), stream, stream.tasks, 100)
    with torch.no_grad():
        for t, task in enumerate(stream.tasks):
            features = torch.cat([backbone.features(weights, stream.test_images[p]) for p in task.test.split(100)])
            logits = concatenate(heads)(features)
            assert int((logits.argmax(1) == everywhere[t]).sum()) >= len(task.test) - 1
            own = heads[t](features).argmax(1) + task.columns.start
            assert int((own == within[t]).sum()) >= len(task.test) - 1
            assert set(within[t].tolist()) <= set(task.columns)
            assert everywhere[t].dtype == within[t].dtype == torch.int64
            correct, total = count(everywhere[t], stream, task)
            truth = stream.test_columns[task.test]
            assert (correct, total) == (sum(int(a == b) for a, b in zip(everywhere[t], truth, strict=True)), len(truth))
    assert all(torch.equal(a, b) for k in (0, 1) for a, b in zip((everywhere, within)[k], again[k], strict=True))


def test_ties_go_to_the_lowest_column(backbone: Backbone, stream: Stream) -> None:
    flat = [Head(torch.zeros(5, backbone.dim), torch.zeros(5)) for _ in range(2)]
    everywhere, within = predict(backbone, backbone.pretrained, concatenate(flat), stream, stream.tasks, 250)
    assert all(not bool(p.any()) for p in everywhere)
    assert [set(p.tolist()) for p in within] == [{0}, {5}]


def test_only_heads_seen_so_far_can_be_predicted(
    backbone: Backbone, stream: Stream, two_heads: tuple[Weights, list[Head]]
) -> None:
    weights, heads = two_heads
    [predicted], _ = predict(backbone, weights, heads[0], stream, stream.tasks[:1], 250)
    assert int(predicted.max()) < 5


def test_protocol_fields_that_training_reads_change_it(run: Train, plain: Learnt) -> None:
    """An option without effect is a bug."""
    protocol = load_protocol("embedded").train
    for field, value in (("lr", 0.005), ("head_lr", 0.005), ("weight_decay", 0.5), ("label_smoothing", 0.2),
                         ("temperature", 2.0), ("batch", 32), ("precision", "bf16")):  # fmt: skip
        assert getattr(protocol, field) != value
        assert bits(run(**{field: value})) != bits(plain), field
