"""Head kinds: what is fitted equals brute force, what is trained is shared, and a killed run serves the same bits."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from bench.cli import cli
from bench.common.errors import UserError
from bench.common.seeds import torch_rng
from bench.config.files import load_protocol
from bench.config.schema import HeadConfig, ProtocolConfig
from bench.data.stream import Stream, TaskData
from bench.method import Trainer
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.class_rows import check_rows
from bench.model.heads import Head, concatenate, training_heads
from bench.plan.cell import Cell
from bench.run.cell import run_cell
from bench.run.classifiers import KINDS, RIDGES, Features, Serving, serving_of
from bench.run.classifiers.align import Gaussian
from bench.run.evaluate import training_features
from bench.run.train import train
from tests.run.test_cell import DATA, Stop, bench, cells, numbers

D, SIZES = 6, (3, 1, 2)  # a task of one class is among them


def tasks() -> list[TaskData]:
    edges = np.cumsum([0, *SIZES])
    none = torch.zeros(0, dtype=torch.long)
    return [
        TaskData(i + 1, tuple(range(a, b)), range(a, b), none, none, none, f"task {i}")
        for i, (a, b) in enumerate(pairwise(edges))
    ]


def images(shuffled: bool = False) -> Features:
    """40 feature vectors a task, of other classes than their order says."""

    def features(task: TaskData) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(task.t)
        y = task.columns.start + torch.randint(len(task.columns), (40,), generator=rng)
        x = torch.randn(40, D, generator=rng) + 1.5 * torch.nn.functional.one_hot(y, D)
        order = torch.randperm(40, generator=rng) if shuffled else torch.arange(40)
        return x[order], y[order]

    return features


def twice(features: Features) -> Features:
    """Of two models: the second one's are turned round."""

    def both(task: TaskData) -> tuple[Tensor, Tensor]:
        x, y = features(task)
        return torch.cat([x, 3 * x.flip(1)], 1), y

    return both


def protocol(kind: str, **overrides: object) -> ProtocolConfig:
    given = {"head.kind": kind, "head.projection": 50, "train.batch": 16, **overrides}
    return load_protocol("embedded", dict(given))


def serving(kind: str, **overrides: object) -> Serving:
    return serving_of(protocol(kind, **overrides), D, "cpu", 3)


def trained(task: TaskData) -> Head:
    return training_heads(HeadConfig(), [task], D, "cpu", 0)


def fitted(found: Serving, features: Features) -> Callable[[Tensor], Tensor]:
    """After all tasks one by one."""
    for task in tasks():
        found.fit([task], [trained(task)], features)
    return found.classifier([trained(task) for task in tasks()])


def everything(features: Features) -> tuple[Tensor, Tensor]:
    pairs = [features(task) for task in tasks()]
    return torch.cat([p[0] for p in pairs]).double(), torch.cat([p[1] for p in pairs])


def hidden(x: Tensor, size: int = 50) -> Tensor:
    """Random features in the way of the paper, with this project's draw for run 3."""
    rng = torch_rng("projection", 3)
    return torch.relu(x.double() @ torch.randn(D, size, generator=rng, dtype=torch.float64))


def test_ncm_is_the_cosine_to_the_mean_feature() -> None:
    x, y = everything(images())
    means = torch.stack([x[y == column].mean(0) for column in range(sum(SIZES))])
    expected = normalize(x, dim=1) @ normalize(means, dim=1).T
    got = fitted(serving("ncm"), images())(x.float())
    assert got.shape == (120, 6)
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)


def test_prototypes_of_two_models_stand_side_by_side_as_they_come() -> None:
    x, y = everything(twice(images()))
    means = torch.stack([x[y == column].mean(0) for column in range(sum(SIZES))])
    expected = normalize(x, dim=1) @ normalize(means, dim=1).T
    got = fitted(serving("ncm_both"), twice(images()))(x.float())
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-6)
    theta_0 = Weights.of({"w": torch.ones(1)})
    assert serving("ncm_both").beside(theta_0) == (theta_0,)
    assert serving("ncm").beside(theta_0) == ()


def test_lda_over_tasks_is_the_discriminant_of_all_images_at_once() -> None:
    x, y = everything(images())
    rows, columns, eps = x.numpy(), y.numpy(), 0.05
    means = [rows[columns == c].mean(0) for c in range(sum(SIZES))]
    within = sum(np.outer(row - means[c], row - means[c]) for row, c in zip(rows, columns, strict=True)) / len(rows)
    precision = np.linalg.inv((1 - eps) * within + eps * np.eye(D))
    expected = np.array([[row @ precision @ m - m @ precision @ m / 2 for m in means] for row in rows])
    got = fitted(serving("lda", **{"head.shrinkage": eps}), images())(x.float())
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-10)
    shuffled = fitted(serving("lda", **{"head.shrinkage": eps}), images(shuffled=True))(x.float())
    torch.testing.assert_close(shuffled, got, rtol=0, atol=1e-10)
    # A covariance of the identity alone leaves the nearest mean.
    nearest = fitted(serving("lda", **{"head.shrinkage": 1.0}), images())(x.float()).argmax(1)
    distances = torch.stack([(x - torch.from_numpy(mean)).square().sum(1) for mean in means], 1)
    assert torch.equal(nearest, distances.argmin(1))


def test_a_class_without_images_is_never_the_answer_of_discriminants() -> None:
    (task,) = tasks()[:1]
    found = serving("lda")
    found.fit([task], [trained(task)], lambda of: (torch.ones(4, D), torch.tensor([0, 0, 2, 2])))
    assert float(found.classifier([trained(task)])(torch.ones(1, D))[0, 1]) == -math.inf


def test_a_gaussian_has_the_classs_moments_and_old_means_shrink() -> None:
    x = torch.randn(30, D, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, D + 1)) + 2
    found = Gaussian.of(1, 0, x)
    covariance = np.cov(x.double().numpy().T) + 1e-4 * np.eye(D)
    np.testing.assert_allclose((found.factor @ found.factor.T).numpy(), covariance, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.mean.numpy(), x.numpy().mean(0), rtol=1e-6, atol=1e-6)
    normal = torch.randn(200_000, D, generator=torch.Generator().manual_seed(1))
    drawn = found.drawn(normal, 4)  # after task 4 a mean of task 1 stands at 0.9 + 0.1 / 4
    np.testing.assert_allclose(drawn.mean(0).numpy(), 0.925 * found.mean.numpy(), atol=0.06)
    np.testing.assert_allclose(np.cov(drawn.numpy().T), covariance, atol=0.6)
    assert torch.isfinite(Gaussian.of(1, 0, x[:1]).drawn(normal[:5], 1)).all()  # one image


def test_alignment_is_its_equations_step_by_step() -> None:
    kept = [trained(task) for task in tasks()]
    found = serving("align", **{"head.align_epochs": 2, "head.align_samples": 20})
    for task, head in zip(tasks(), kept, strict=True):
        found.fit([task], [head], images())
        if task.t == 1:
            assert found.classifier(kept[:1]).digest() == kept[0].digest()  # nothing to align yet
    W = torch.cat([head.weight for head in kept]).double()
    b, speed = torch.zeros(sum(SIZES), dtype=torch.float64), [0.0, 0.0]
    for epoch in range(2):
        x, y = found._samples(epoch)  # type: ignore[attr-defined]
        assert len(x) == 20 * sum(SIZES)
        assert torch.equal(y.bincount(), torch.full((sum(SIZES),), 20))
        lr = 0.01 * (1 + math.cos(math.pi * epoch / 2)) / 2
        for at in range(0, len(x), 20):
            W, b = W.requires_grad_(), b.requires_grad_()
            loss = W.new_zeros(())
            for row, column in zip(x[at : at + 20].double(), y[at : at + 20], strict=True):
                logits = W @ row + b
                norm = sum(logits[edge : edge + n].norm() for edge, n in zip((0, 3, 4), SIZES, strict=True)) / 3
                scaled = logits / norm / 0.1
                loss = loss + (torch.logsumexp(scaled, 0) - scaled[column]) / 20
            gradients = torch.autograd.grad(loss, [W, b])
            W, b = W.detach(), b.detach()
            speed = [0.9 * v + g + 5e-4 * p for v, g, p in zip(speed, gradients, (W, b), strict=True)]
            W, b = W - lr * speed[0], b - lr * speed[1]
    got = found.classifier(kept)
    assert isinstance(got, Head)
    np.testing.assert_allclose(got.weight.numpy(), W.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.bias.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)
    assert not torch.equal(got.weight, torch.cat([head.weight for head in kept]))
    for head, task in zip(kept, tasks(), strict=True):
        assert torch.equal(head.weight, trained(task).weight)  # copies were trained


def test_alignment_lets_no_head_shout_the_others_down() -> None:
    def split(task: TaskData) -> tuple[Tensor, Tensor]:
        y = task.columns.start + torch.arange(60) % len(task.columns)
        noise = torch.randn(60, D, generator=torch.Generator().manual_seed(task.t))
        return 0.3 * noise + 3 * torch.nn.functional.one_hot(y, D), y

    heads = []
    for task in tasks():
        weight = torch.eye(D)[task.columns.start : task.columns.stop] * (20 if task.t == 1 else 1)
        heads.append(Head(weight, torch.full((len(task.columns),), 30.0 if task.t == 1 else 0.0)))
    x, y = everything(split)
    assert float((concatenate(heads)(x.float()).argmax(1) == y).float().mean()) < 0.5
    found = serving("align", **{"head.align_lr": 0.5})
    for task, head in zip(tasks(), heads, strict=True):
        found.fit([task], [head], split)
    assert float((found.classifier(heads)(x.float()).argmax(1) == y).float().mean()) > 0.95


def test_joint_heads_are_aligned_at_once_as_if_all_tasks_had_been_seen() -> None:
    kept = [trained(task) for task in tasks()]
    one_by_one, together = serving("align"), serving("align")
    for task, head in zip(tasks(), kept, strict=True):
        one_by_one.fit([task], [head], images())
    together.fit(tasks(), kept, images())
    assert together.classifier(kept).digest() == one_by_one.classifier(kept).digest()


def test_the_penalty_is_the_same_from_either_side_of_the_kernel() -> None:
    """32 images are fewer than 50 random features and more than 20: both ways to solve, by brute force."""
    for size in (50, 20):
        found = serving("ridge", **{"head.projection": size})
        x, y = images()(tasks()[0])
        targets = torch.eye(3, dtype=torch.float64)[y]
        h = hidden(x[:32], size)
        for ridge, weight in found._solutions(x[:32], targets[:32]):  # type: ignore[attr-defined]
            if ridge < 1e-5:
                continue  # float64 does not reach further
            expected = np.linalg.inv(h.T @ h + ridge * np.eye(size)) @ (h.T @ targets[:32]).numpy()
            np.testing.assert_allclose(weight.numpy(), expected, rtol=0, atol=1e-5)


def test_ridge_over_tasks_is_one_solve_over_all_images() -> None:
    x, y = everything(images())
    h, one_hot = hidden(x).numpy(), np.eye(sum(SIZES))[y]
    expected = h @ np.linalg.inv(h.T @ h + 2.5 * np.eye(50)) @ h.T @ one_hot
    for batch in (7, 250):
        got = fitted(serving("ridge", **{"head.ridge": 2.5, "eval_batch": batch}), images())(x.float())
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)
    shuffled = fitted(serving("ridge", **{"head.ridge": 2.5}), images(shuffled=True))(x.float())
    np.testing.assert_allclose(shuffled, expected, rtol=0, atol=1e-10)
    classifier = fitted(serving("ridge", **{"head.ridge": 2.5, "train.lr": 0.5}), images())
    assert classifier.digest() != fitted(serving("ridge", **{"head.ridge": 2.0}), images()).digest()


def test_the_penalty_is_the_best_of_17_on_a_fifth_of_the_current_task() -> None:
    found, chosen = serving("ridge"), []
    for task in tasks():
        x, y = images()(task)
        told = found.fit([task], [trained(task)], images())
        order = torch.randperm(40, generator=torch_rng("ridge", 3, task.content))
        h, one_hot = hidden(x), torch.eye(sum(SIZES), dtype=torch.float64)[y]
        own, rest = order[:32], order[32:]

        def error(
            ridge: float, h: Tensor = h, one_hot: Tensor = one_hot, own: Tensor = own, rest: Tensor = rest
        ) -> float:
            gram = h[own].T @ h[own] + ridge * torch.eye(50, dtype=torch.float64)
            W = torch.linalg.solve(gram, h[own].T @ one_hot[own])
            return float(torch.nn.functional.mse_loss(h[rest] @ W, one_hot[rest]))

        assert len(RIDGES) == 17
        assert told["head_ridge"] == min(RIDGES, key=error)
        chosen.append(told["head_ridge"])
    assert min(chosen) > 1e-8
    assert max(chosen) < 1e8


def test_a_penalty_too_small_for_float64_is_said_or_raised() -> None:
    def same(task: TaskData) -> tuple[Tensor, Tensor]:
        return torch.full((40, D), 1e8), torch.full((40,), task.columns.start)

    with pytest.raises(FloatingPointError, match=r"head\.ridge 1e-08 is too small"):
        fitted(serving("ridge", **{"head.ridge": 1e-8}), same)
    assert torch.isfinite(fitted(serving("ridge"), same)(torch.ones(1, D))).all()


def test_refit_trains_copies_on_and_leaves_past_heads() -> None:
    found, features, before = serving("refit"), images(), []
    kept = [trained(task) for task in tasks()]
    for i, task in enumerate(tasks()):
        found.fit([task], [kept[i]], features)
        after = found.classifier(kept[: i + 1]).split(SIZES[: i + 1])  # type: ignore[attr-defined]
        for old, same in zip(before, after, strict=False):
            assert torch.equal(old.weight, same.weight)
        x, y = features(task)
        losses = [float(cross_entropy(head(x), y - task.columns.start)) for head in (kept[i], after[i])]
        assert losses[1] < losses[0] or len(task.columns) == 1
        assert torch.equal(kept[i].weight, trained(task).weight)
        assert not kept[i].weight.requires_grad
        before = after


def test_refit_after_joint_training_takes_its_softmax() -> None:
    kept = [trained(task) for task in tasks()]
    one_by_one, own, together = serving("refit"), serving("refit"), serving("refit")
    for task, head in zip(tasks(), kept, strict=True):
        one_by_one.fit([task], [head], images())
    own.fit(tasks(), kept, images(), "own")
    together.fit(tasks(), kept, images(), "all")
    digests = [found.classifier(kept).digest() for found in (one_by_one, own, together)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_carried_is_given_back_bit_for_bit(kind: str) -> None:
    carried = {
        "ridge": 8 * (50 * 50 + 50 * 4),
        "lda": 8 * (D * D + 4 * D + 4),
        "align": 4 * 4 * (D + D * D),  # float32, four classes
    }
    a, b, seen, shown = serving(kind), serving(kind), tasks(), twice(images()) if kind == "ncm_both" else images()
    heads = [trained(task) for task in seen]
    for task, head in zip(seen[:2], heads[:2], strict=True):
        a.fit([task], [head], shown)
    b.restore({name: x.clone() for name, x in a.tensors().items()})
    assert a.carried == b.carried == carried.get(kind, 0)
    for found in (a, b):
        found.fit([seen[2]], [heads[2]], shown)
    assert a.classifier(heads).digest() == b.classifier(heads).digest()


def test_a_class_without_images_is_never_the_answer_of_prototypes() -> None:
    (task,) = tasks()[:1]
    found = serving("ncm")
    found.fit([task], [trained(task)], lambda of: (torch.ones(4, D), torch.tensor([0, 0, 2, 2])))
    logits = found.classifier([trained(task)])(torch.ones(1, D))
    assert torch.isfinite(logits).all()
    assert float(logits[0, 1]) == 0


def test_features_are_the_training_part_as_shown_at_test(backbone: Backbone, digits: object) -> None:
    held = Stream(digits, 2, class_order_seed=0, eval_split="val")  # type: ignore[arg-type]
    task = held.tasks[0]
    assert not set(task.train.tolist()) & set(task.val.tolist())
    x, y = training_features(backbone, backbone.pretrained, held, 100, task)
    whole = backbone.features(backbone.pretrained, held.train_images[task.train])
    torch.testing.assert_close(x, whole, rtol=0, atol=1e-5)
    assert torch.equal(y, held.train_columns[task.train])
    assert (x.dtype, x.requires_grad) == (torch.float32, False)


# ---- text rows ---------------------------------------------------------------------------------------------------
def write_rows(file: Path, classes: int = 10, dim: int = 64) -> Tensor:
    rows = np.random.default_rng(0).normal(size=(classes, dim)).astype(np.float32)
    rows *= 5 / np.linalg.norm(rows, axis=1, keepdims=True)
    save_file({"rows": rows}, file, metadata={"class_names": json.dumps([str(c) for c in range(classes)])})
    return torch.from_numpy(rows)


def test_zero_shot_heads_are_scaled_cosines_that_training_leaves_alone(
    tmp_path: Path, backbone: Backbone, stream: Stream
) -> None:
    rows = write_rows(tmp_path / "text.safetensors")
    text = protocol("zero_shot", **{"head.text": str(tmp_path / "text.safetensors"), "train.epochs": 1})
    task = stream.tasks[1]
    learnt = train(backbone, stream, [task], Trainer(), backbone.pretrained, text, run_seed=0)
    (head,) = learnt.heads
    assert torch.equal(head.weight, rows[list(task.classes)])
    assert not head.bias.any()
    assert (learnt.weights - backbone.pretrained).norm() > 0.01
    x = torch.randn(9, 64)
    expected = 5 * torch.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(x), expected, rtol=0, atol=1e-5)
    again = Head.of(concatenate([head, head]).tensors("a."), "cpu", "a.")
    torch.testing.assert_close(again(x), torch.cat([head(x), head(x)], 1))
    assert again.digest() != Head(again.weight, again.bias).digest()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no file {file}; make it with: clmerge text"),
        ({"rows": np.zeros((10, 7), np.float32)}, "10 rows of 7 numbers; at least 10 of 64"),
        ({"rows": np.zeros((9, 64), np.float32)}, "9 rows of 64 numbers; at least 10 of 64"),
        ({"rows": np.zeros(10, np.float32)}, "rows have shape (10,), not (classes, D)"),
        ({"other": np.zeros((10, 64), np.float32)}, "holds no tensor 'rows'"),
    ],
)
def test_wrong_text_rows_say_what_and_how_to_mend(tmp_path: Path, content: dict | None, told: str) -> None:
    file = tmp_path / "text.safetensors"
    if content is not None:
        save_file(content, file)
    config = HeadConfig(kind="zero_shot", text=str(file))
    none = torch.zeros(0, dtype=torch.long)
    task = TaskData(1, tuple(range(10)), range(10), none, none, none, "c")
    with pytest.raises(UserError, match=re.escape(told.format(file=file))) as caught:
        training_heads(config, [task], 64, "cpu", 0)
    assert "\n" not in str(caught.value)
    assert "clmerge text" in str(caught.value)


def test_text_rows_are_checked_without_reading_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "text.safetensors")
    check_rows(HeadConfig(kind="zero_shot", text=str(tmp_path / "text.safetensors")), 10)
    with pytest.raises(UserError, match="has 10 rows, the dataset 12 classes"):
        check_rows(HeadConfig(kind="zero_shot", text=str(tmp_path / "text.safetensors")), 12)
    with pytest.raises(UserError, match=r"head\.text: missing"):
        check_rows(HeadConfig(kind="zero_shot"), 12)


# ---- cells -------------------------------------------------------------------------------------------------------
def small(method: str, tmp_path: Path, n_tasks: int = 3, **overrides: object) -> Cell:
    (tmp_path / "text.safetensors").exists() or write_rows(tmp_path / "text.safetensors")
    fixed = {"head.projection": 100, "head.text": str(tmp_path / "text.safetensors"), "train.batch": 128}
    (cell,) = cells(method, n_tasks=n_tasks, **fixed, **overrides)
    return cell


@pytest.mark.parametrize("kind", ["ncm", "ncm_both", "ridge", "refit", "align", "lda", "zero_shot"])
def test_resumed_equals_uninterrupted(tmp_path: Path, kind: str) -> None:
    cell = small(f"average@merged/{kind}", tmp_path)
    whole = run_cell(cell, bench(tmp_path / "whole", cache=False))

    def stop(beat: dict) -> None:
        if (beat["phase"], beat["task"]) == ("evaluating", 3):
            raise Stop

    with pytest.raises(Stop):
        run_cell(cell, bench(tmp_path / "again", cache=False), progress=stop)
    again = run_cell(cell, bench(tmp_path / "again", cache=False))
    assert numbers(again) == numbers(whole)
    assert [t["scalars"] for t in again["tasks"]] == [t["scalars"] for t in whole["tasks"]]
    assert again["totals"]["carried_bytes"] == whole["totals"]["carried_bytes"]


def test_linear_ncm_ridge_and_refit_share_every_training_and_what_is_merged(tmp_path: Path) -> None:
    records = {}
    for head in ("", "/linear", "/ncm", "/ridge", "/refit"):
        cell = small(f"average@pretrained{head}", tmp_path, n_tasks=2)
        records[head] = run_cell(cell, bench(tmp_path))
        assert numbers(records[head])[-2:] == numbers(records[""])[-2:]
        assert records[head]["digest"] == records[""]["digest"]
        assert records[head]["before_merge"] == records[""]["before_merge"]  # trained heads, whatever is served
        assert (records[head]["totals"]["train_s_spent"] == 0) == (head != "")
    assert len(list((tmp_path / "cache" / "train").rglob("*.safetensors"))) == 2
    counts = {head: record["counts"] for head, record in records.items()}
    assert counts[""] == counts["/linear"]
    assert len({json.dumps(counts[head]) for head in ("", "/ncm", "/ridge", "/refit")}) == 4
    assert records["/ridge"]["totals"]["carried_bytes"] == 8 * (100 * 100 + 100 * 10)
    assert records["/ncm"]["totals"]["carried_bytes"] == 0
    assert records["/ridge"]["coordinates"]["variant"] == "plain+average@pretrained/ridge"
    again = small("linear_probe", tmp_path, n_tasks=2, **{"head.kind": "zero_shot"})
    assert not set(again.train_keys.values()) & set(small("linear_probe", tmp_path, n_tasks=2).train_keys.values())


def test_fitting_again_helps_after_merging_and_names_stand_for_frozen_backbones(tmp_path: Path) -> None:
    def last(method: str, **overrides: object) -> float:
        row = run_cell(small(method, tmp_path, **overrides), bench(tmp_path))["counts"][-1]
        return 100 * sum(correct for correct, _ in row) / sum(total for _, total in row)

    assert last("ridge") > last("ncm") > 40
    assert last("linear_probe/ridge") == last("ridge")
    assert last("joint/ridge") > last("average@pretrained/ridge") - 5
    assert last("linear_probe/zero_shot") < 40  # random rows


def test_nothing_is_trained_where_rows_stand_on_a_frozen_backbone(tmp_path: Path) -> None:
    record = run_cell(small("linear_probe/zero_shot", tmp_path), bench(tmp_path))
    assert record["totals"]["opt_steps"] == 0
    assert record["counts"][-1] is not None
    assert not math.isnan(record["totals"]["train_s_alone"])


def test_experts_are_served_by_trained_heads_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="serves every task by its own model"):
        small("experts/ncm", tmp_path)
    with pytest.raises(UserError, match="serves every task by its own model"):
        small("experts", tmp_path, **{"head.kind": "ridge"})
    small("experts/zero_shot", tmp_path)


@pytest.mark.parametrize(("head", "spelling"), [("ncm", "average/ncm"), ("zero_shot", "average")])
def test_kept_weights_replay_with_prototypes_and_with_rows_as_the_run_was_served(
    tmp_path: Path, head: str, spelling: str
) -> None:
    cell = dataclasses.replace(small(f"average/{head}", tmp_path, n_tasks=2), keep_weights=True)
    first = run_cell(cell, bench(tmp_path))
    folder, other = tmp_path / "runs" / cell.id / "weights", tmp_path / "replayed"

    def replay(methods: str) -> Result:
        told = ["--results", str(other), "--data", str(DATA)]
        return CliRunner().invoke(cli, ["replay", str(folder), "--methods", methods, *told])

    done = replay(spelling)
    assert done.exit_code == 0, done.output
    (file,) = other.glob("runs/*/cell.json")
    assert json.loads(file.read_text())["counts"] == first["counts"]
    for wrong in ("average/refit", "experts/ncm"):
        refused = replay(wrong)
        assert refused.exit_code == 2
        assert "replayed models take no head" in refused.output
