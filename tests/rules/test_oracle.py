"""Oracles pick what validation images say, on validation images only, and that those were never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.common.cache import Store
from bench.common.errors import UserError
from bench.config.schema import ProtocolConfig, SuiteConfig
from bench.data.dataset import Dataset
from bench.data.stream import Stream
from bench.method.recorded import RecordedTask
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import new_head
from bench.plan.grid import expand
from bench.registry import Registry
from bench.run.cell import run_cell
from bench.run.live_task import LiveTask
from bench.run.workbench import Workbench
from tests.helpers.toy import Models, Toy, close, rule

DATA = Path(__file__).parents[2] / "data"


class Flat(Toy):
    """Every alpha is as good as any other."""

    def accuracy(self, weights: Weights) -> float:
        return 0.5


class Bowl(Toy):
    """Cross-entropy has its minimum, and accuracy its maximum, where tensor i stands at ``best[i]``."""

    best = torch.tensor([0.2, 0.9, 0.4], dtype=torch.float64)

    def _distance(self, weights: Weights) -> torch.Tensor:
        D = self.trained - self.served
        wanted = self.served + D * D.spread(self.best)
        return ((weights - wanted) * (weights - wanted)).sum()

    def logits(self, weights: Weights, x: torch.Tensor, heads: str | int = "current") -> torch.Tensor:
        assert heads == "seen"
        d = self._distance(weights)
        return torch.stack([-d, d * 0]).expand(len(x), 2)

    def validation(self, size: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(steps):
            yield torch.zeros(size, 6), torch.zeros(size, dtype=torch.int64)

    def accuracy(self, weights: Weights) -> float:
        return 1 - float(self._distance(weights))


def at(models: Models, kind: type[Toy], t: int = 3) -> Any:
    task = models.task(t, models.thetas[0])
    return kind(**{name: getattr(task, name) for name in ("t", "pretrained", "start", "served", "trained")})


def test_the_scalar_oracle_picks_the_best_of_its_grid_and_the_smaller_on_a_tie() -> None:
    models = Models.draw(6)
    task = models.task(2, models.thetas[0])  # best at 0.3 of the way
    assert close(rule("oracle_scalar").merge(task), task.served + (task.trained - task.served) * 0.3)
    assert task.scalars["alpha"] == pytest.approx(0.3)
    assert task.scalars["validation_accuracy"] > task.scalars["validation_accuracy_average"]
    flat = at(models, Flat)
    assert rule("oracle_scalar").merge(flat).digest() == flat.served.digest()
    assert flat.scalars["alpha"] == 0


def test_the_running_average_is_always_among_what_is_tried() -> None:
    class Third(Toy):
        def accuracy(self, weights: Weights) -> float:
            return -(weights - self.served - (self.trained - self.served) / 3).norm()

    task = at(Models.draw(2), Third)
    rule("oracle_scalar").merge(task)
    assert task.scalars["alpha"] == 1 / 3
    assert task.scalars["validation_accuracy"] == task.scalars["validation_accuracy_average"]


def test_the_layer_oracle_finds_each_tensors_alpha() -> None:
    task = at(Models.draw(3), Bowl)
    served = rule("oracle_layer", steps=2000, lr=0.01).merge(task)
    D = task.trained - task.served
    found = [float((served - task.served).dots(D)[i] / D.dots(D)[i]) for i in range(3)]
    assert found == pytest.approx(Bowl.best.tolist(), abs=0.02)
    assert task.scalars["validation_accuracy"] > task.scalars["validation_accuracy_scalar"]
    assert task.scalars["kept_scalar"] == 0
    assert task.scalars["alpha"] == pytest.approx(0.5, abs=0.02)


def test_layers_that_validation_ranks_lower_are_discarded_for_the_scalar() -> None:
    class Deceived(Bowl):
        """What lowers the cross-entropy lowers the accuracy."""

        def accuracy(self, weights: Weights) -> float:
            D = self.trained - self.served
            return -(weights - self.served - D).norm()

    models = Models.draw(3)
    task = at(models, Deceived)
    assert close(rule("oracle_layer", steps=50).merge(task), task.trained)
    assert (task.scalars["kept_scalar"], task.scalars["alpha"]) == (1, 1)
    scalar, layer = at(models, Bowl), at(models, Bowl)
    served = rule("oracle_layer", steps=0).merge(layer)
    assert served.digest() == rule("oracle_scalar").merge(scalar).digest()


@pytest.mark.parametrize("key", ["oracle_scalar", "oracle_layer"])
def test_recorded_tensors_have_no_validation_images(key: str) -> None:
    models = Models.draw(0)
    task = RecordedTask(2, models.theta_0, models.theta_0, models.thetas[0], models.thetas[1])
    with pytest.raises(UserError, match="task 2: the rule reads images"):
        rule(key).merge(task)
    with pytest.raises(UserError, match="task 2: the rule reads images"):
        task.validation(4, 1)


# ---- a live task -----------------------------------------------------------------------------------------------------
def live(stream: Stream, backbone: Backbone, protocol: ProtocolConfig, data: str, tmp_path: Path) -> LiveTask:
    w = backbone.pretrained
    heads = [new_head(5, backbone.dim, 0.02, "cpu", i) for i in range(2)]
    return LiveTask(data, stream, stream.tasks[1], backbone, protocol, heads, 0, Store(tmp_path), w, w, w, w, {})


def test_validation_images_are_of_every_task_seen_and_of_nothing_else(
    digits: Dataset, backbone: Backbone, protocol: ProtocolConfig, tmp_path: Path
) -> None:
    stream = Stream(digits, 2, class_order_seed=0, eval_split="test_heldout")
    part = torch.cat([task.val for task in stream.tasks])
    batches = list(live(stream, backbone, protocol, "oracle", tmp_path).validation(len(part), 2))
    for x, columns in batches:
        assert x.shape == (len(part), *stream.train_images.shape[1:])
        assert sorted(columns.tolist()) == sorted(stream.train_columns[part].tolist())
    assert not torch.equal(batches[0][1], batches[1][1])  # another order
    for data in ("none", "unlabelled", "labelled"):
        with pytest.raises(PermissionError, match="may not read validation"):
            next(live(stream, backbone, protocol, data, tmp_path).validation(4, 1))


def test_held_out_streams_train_on_the_rest_and_test_on_the_test_set(digits: Dataset) -> None:
    full, val, held = (Stream(digits, 2, 0, eval_split=split) for split in ("test", "val", "test_heldout"))
    assert torch.equal(held.test_images, full.test_images)
    for f, v, h in zip(full.tasks, val.tasks, held.tasks, strict=True):
        assert torch.equal(h.train, v.train)
        assert torch.equal(h.test, f.test)
        assert set(h.train.tolist()) | set(h.val.tolist()) == set(f.train.tolist())
        assert not set(h.train.tolist()) & set(h.val.tolist())


@pytest.mark.run
def test_oracles_run_to_a_record_that_says_what_they_are_and_gained(tmp_path: Path) -> None:
    suite = SuiteConfig(
        key="t", protocol="embedded", datasets=["digits"], tasks=[2], seeds="1", eval_split="test_heldout",
        methods=["oracle_scalar", "oracle_layer:steps=3", "pm_oracle"],
    )  # fmt: skip
    cells, _ = expand(suite, Registry.load(), DATA, [], {"train.epochs": 1, "per_dataset": {}})
    bench = Workbench(tmp_path, DATA, Store(tmp_path / "cache"))
    for cell in cells:
        record = run_cell(cell, bench)
        assert record["status"] == "done", record["error"]
        assert record["coordinates"]["eval_split"] == "test_heldout"
        assert (record["method"]["status"], record["method"]["data"]["merging"]) == ("oracle", "oracle")
        first, *later = (task["scalars"] for task in record["tasks"])
        assert first == {}
        for told in later:
            assert 0 <= told["validation_accuracy_average"] <= told["validation_accuracy"] <= 1
        assert record["totals"]["carried_bytes"] == 0
