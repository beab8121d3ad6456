"""Trainers that read more than the batch: from cell to record, their keys, and what they may not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream
from bench.method import Step, Trainer
from bench.model.backbone import Backbone
from bench.run.cell import run_cell
from bench.run.train import train
from tests.run.test_cell import Stop, bench, cells, numbers


@pytest.mark.parametrize("method", ["lwf", "lwf_average"])
def test_a_cell_that_was_interrupted_or_cached_has_the_same_numbers(tmp_path: Path, method: str) -> None:
    (cell,) = cells(method)

    def stop(beat: dict) -> None:
        if (beat["phase"], beat["task"]) == ("merging", 3):
            raise Stop

    whole = numbers(run_cell(cell, bench(tmp_path / "whole", cache=False)))
    with pytest.raises(Stop):
        run_cell(cell, bench(tmp_path / "broken", cache=False), progress=stop)
    assert numbers(run_cell(cell, bench(tmp_path / "broken", cache=False))) == whole
    for _ in range(2):  # cold, then warm
        assert numbers(run_cell(cell, bench(tmp_path / "cached"))) == whole
        (tmp_path / "cached" / "runs" / cell.id / "cell.json").unlink()


def test_without_their_term_they_are_plain_training(tmp_path: Path) -> None:
    table = {
        cell.method.variant: numbers(run_cell(cell, bench(tmp_path)))
        for cell in cells("finetune", "lwf:alpha=0", "lwf", "average@merged", "lwf+average@merged:alpha=0")
    }
    assert table["lwf+last@previous:alpha=0"] == table["plain+last@previous"] != table["lwf+last@previous"]
    assert table["lwf+average@merged:alpha=0"] == table["plain+average@merged"]


def test_two_rules_share_a_teachers_trainings_only_as_long_as_they_served_the_same() -> None:
    """At start pretrained plain trainings are everybody's; with a teacher from the second task on a rule's own."""
    keys = {
        cell.method.variant: cell.train_keys
        for cell in cells("plain+average@pretrained", "plain+last@pretrained", "lwf+average@pretrained",
                          "lwf+last@pretrained", "lwf+last@previous")
    }  # fmt: skip
    assert keys["plain+average@pretrained"] == keys["plain+last@pretrained"]
    one, other = keys["lwf+average@pretrained"], keys["lwf+last@pretrained"]
    assert one[1] == other[1] == keys["lwf+last@previous"][1]
    assert one[2] != other[2]
    assert one[3] != other[3]


def test_who_has_the_wrong_teachings_in_the_cache_does_not_find_them(tmp_path: Path) -> None:
    """Two rules one after the other on one cache, and each alone: the same numbers."""
    asked = cells("lwf+average@pretrained", "lwf+last@pretrained")
    shared = [numbers(run_cell(cell, bench(tmp_path / "shared"))) for cell in asked]
    alone = [numbers(run_cell(cell, bench(tmp_path / cell.id, cache=False))) for cell in asked]
    assert shared == alone
    assert shared[0] != shared[1]


class Curious(Trainer):
    """Reads what was served without saying so."""

    def loss(self, step: Step) -> float:
        return step.served.norm()


class OldHeads(Trainer):
    """Asks for heads that are not there."""

    def loss(self, step: Step) -> float:
        return float(step.logits(step.weights, step.pixels, "old").sum())


@pytest.mark.parametrize(
    ("trainer", "error", "said"),
    [(Curious, PermissionError, "reads_served"), (OldHeads, ValueError, "no old heads at task 1")],
)
def test_what_a_step_does_not_have_is_refused(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig, trainer: type[Trainer],
    error: type[Exception], said: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=said):
        train(
            backbone, stream, stream.tasks[:1], trainer(), backbone.pretrained, protocol, 0, served=backbone.pretrained
        )
