"""Domain-incremental cells: one head for all domains, through the same loop, to the same bits however they got there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from bench.cli import cli
from bench.common.cache import Store
from bench.common.errors import UserError
from bench.config.schema import HeadConfig, SuiteConfig
from bench.data.scenario import SCENARIOS
from bench.model.heads import Head, training_heads
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.records.record import read_record
from bench.registry import Registry
from bench.report.figures.confusion import confusion
from bench.report.figures.drawing import LeftOut
from bench.report.rows import detailed_rows, labelled
from bench.report.scenario_words import WORDS
from bench.report.tables import blocks
from bench.run.cell import run_cell
from bench.run.classifiers import serving_of
from bench.run.workbench import Workbench
from tests.helpers.domains import write_letters

BY_DOMAIN = SCENARIOS["domain_incremental"]
METHODS = (
    "average@merged", "pm", "finetune", "ewc", "ties@pretrained", "regmean", "joint", "joint_local", "linear_probe",
    "average@merged/ncm", "average@merged/ncm_both", "average@merged/lda", "average@merged/ridge:projection=100",
    "average@merged/align", "average@merged/refit", "ranpac:projection=100", "adamerging:steps=3", "experts",
    "trm:steps=2", "oracle_layer:steps=2", "fisher",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("letters")
    write_letters(folder)
    return folder


def cells(data: Path, *methods: str, seeds: str = "1", **overrides: Any) -> list[Cell]:
    suite = SuiteConfig(
        key="test", protocol="embedded", datasets=[str(data / "letters.yaml")], tasks=[3], methods=list(methods),
        seeds=seeds,
    )  # fmt: skip
    found, _ = expand(suite, Registry.load(), data, [], {"train.epochs": 1, **overrides})
    return found


def bench(results: Path, data: Path, cache: bool = True) -> Workbench:
    return Workbench(results, data, Store(results / "cache", cache))


def numbers(record: dict[str, Any]) -> list[Any]:
    assert record["status"] == "done", record.get("error")
    return [record["counts"], record["before_merge"], *(t["served_digest"] for t in record["tasks"])]


@pytest.fixture(scope="module")
def ran(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """Every method once: the results folder, and records by the method's spelling."""
    results, records = tmp_path_factory.mktemp("ran"), {}
    for spelling in METHODS:
        (cell,) = cells(data, spelling)
        records[spelling] = run_cell(cell, bench(results, data))
    return results, records


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method_runs_and_counts_each_domains_test_images(
    method: str, ran: tuple[Path, dict[str, dict[str, Any]]]
) -> None:
    record = ran[1][method]
    assert record["status"] == "done", record.get("error")
    assert [total for _, total in record["counts"][-1]] == [36, 36, 36]  # A_last is over all 108 test images
    assert record["counts_taskaware"] == record["counts"]  # knowing the task narrows nothing
    assert record["coordinates"]["scenario"] == "domain_incremental"
    assert record["id"].startswith("letters-T3-domains-embedded")
    assert sorted(record["dataset"]["domains"]) == ["Sans", "SansMono", "Serif"]
    told = [task["domain"] for task in record["tasks"]]
    assert told == (record["dataset"]["domains"] if len(told) == 3 else record["dataset"]["domains"][-1:])


def test_counts_follow_from_the_predictions_and_the_task_of_each_image(
    ran: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    results, records = ran
    record = records["average@merged"]
    with np.load(results / "runs" / record["id"] / "pred.npz") as kept:
        for t, row in enumerate(kept["predicted"], 1):
            right = [int((row == kept["true"])[kept["task"] == i].sum()) for i in range(1, t + 1)]
            assert right == [correct for correct, _ in record["counts"][t - 1]]
            assert (row[kept["task"] > t] == -1).all()


def test_one_domain_alone_is_answered_as_trained_before_others_come(
    ran: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    records = ran[1]
    assert records["experts"]["counts"][-1] == records["experts"]["before_merge"]  # each domain by its own model
    assert records["joint"]["digest"] == records["joint_local"]["digest"]  # one head: own and all classes are the same
    assert records["average@merged"]["digest"] == records["average@merged/ncm"]["digest"]  # the head trains no backbone


# ---- the shared head ------------------------------------------------------------------------------------------------
def test_the_head_of_a_later_task_begins_as_the_one_before_ended(data: Path, tmp_path: Path) -> None:
    (cell,) = cells(data, "finetune")
    first, second = bench(tmp_path, data).stream(cell).tasks[:2]
    fresh = training_heads(HeadConfig(), [first], 8, "cpu", 0, BY_DOMAIN)
    assert torch.equal(fresh.weight, training_heads(HeadConfig(), [first], 8, "cpu", 0).weight)  # as usual
    last = Head(torch.randn(12, 8), torch.randn(12))
    begun = training_heads(HeadConfig(), [second], 8, "cpu", 0, BY_DOMAIN, [fresh, last])
    assert torch.equal(begun.weight, last.weight)
    assert torch.equal(begun.bias, last.bias)
    begun.weight.add_(1)
    assert not torch.equal(begun.weight, last.weight)  # a copy


def test_a_trainings_key_holds_those_of_the_trainings_that_its_head_went_through(data: Path) -> None:
    straight = cells(data, "average@pretrained", class_order=[0, 1, 2])[0].train_keys
    swapped = cells(data, "average@pretrained", class_order=[1, 0, 2])[0].train_keys
    again = cells(data, "average@pretrained", class_order=[0, 2, 1])[0].train_keys
    assert straight[1] == again[1]  # the same domain first
    assert straight[1] != swapped[1]
    assert straight[3] != swapped[3]  # the same domain last, by way of another head
    assert len({*straight.values(), *again.values()}) == 5
    linear, rule = cells(data, "average@pretrained/ncm"), cells(data, "ties@pretrained")
    assert linear[0].train_keys == rule[0].train_keys == cells(data, "average@pretrained")[0].train_keys


def test_class_means_are_over_all_domains_seen(data: Path, tmp_path: Path) -> None:
    (cell,) = cells(data, "average@merged/ncm")
    stream = bench(tmp_path, data).stream(cell)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(len(stream.train_columns), 5, generator=generator)
    means = serving_of(cell.protocol, 5, "cpu", 0, BY_DOMAIN)
    for task in stream.tasks[:2]:
        means.fit([task], [], lambda t: (features[t.train], stream.train_columns[t.train]))
    seen = torch.cat([task.train for task in stream.tasks[:2]])
    x, y = features[seen], stream.train_columns[seen]
    expected = torch.stack([x[y == c].double().sum(0) for c in range(12)])
    rows = means.classifier([]).weight  # type: ignore[attr-defined]
    torch.testing.assert_close(rows, torch.nn.functional.normalize(expected, dim=1).float())
    assert means.carried == 12 * 5 * 8
    again = serving_of(cell.protocol, 5, "cpu", 0, BY_DOMAIN)
    again.restore(means.tensors())
    for classifier in (means, again):
        classifier.fit([stream.tasks[2]], [], lambda t: (features[t.train], stream.train_columns[t.train]))
    assert means.classifier([]).digest() == again.classifier([]).digest()


# ---- the same bits --------------------------------------------------------------------------------------------------
class Stop(BaseException):
    """Like Ctrl-C: not an error of the cell."""


HEADS = ("ncm", "ncm_both", "lda", "align", "refit")


@pytest.mark.parametrize("method", ["average@merged", "ewc", *(f"average@merged/{head}" for head in HEADS)])
def test_resumed_after_the_first_domain_equals_uninterrupted(
    method: str, data: Path, tmp_path: Path, ran: tuple[Path, dict[str, dict[str, Any]]]
) -> None:
    (cell,) = cells(data, method)

    def stop(beat: dict[str, Any]) -> None:
        if (beat["phase"], beat["task"]) == ("training", 2):
            raise Stop

    with pytest.raises(Stop):
        run_cell(cell, bench(tmp_path, data, cache=False), progress=stop)
    beats: list[dict[str, Any]] = []
    again = run_cell(cell, bench(tmp_path, data, cache=False), progress=beats.append)
    assert numbers(again) == numbers(ran[1][method])
    assert [beat["task"] for beat in beats if beat["phase"] == "training"] == [2, 3]


def test_a_training_of_the_cache_brings_its_head(data: Path, tmp_path: Path) -> None:
    (cell,) = cells(data, "ties@pretrained")
    cold = run_cell(cell, bench(tmp_path, data))
    (tmp_path / "runs" / cell.id / "cell.json").unlink()
    warm = run_cell(cell, bench(tmp_path, data))
    assert numbers(warm) == numbers(cold)
    assert warm["totals"]["train_s_spent"] == 0 < cold["totals"]["train_s_spent"]


def clmerge(*arguments: str, results: Path, data: Path) -> Any:
    return CliRunner().invoke(cli, [*arguments, "--results", str(results), "--data", str(data)])


def test_kept_weights_replayed_give_the_runs_counts(data: Path, tmp_path: Path) -> None:
    tiny = ["--protocol-set", "train.epochs=1", "--protocol-set", "per_dataset={}", "--executor", "local", "--quiet"]
    done = clmerge("run", "--datasets", str(data / "letters.yaml"), "--tasks", "3", "--seeds", "1", "--methods",
                   "average@merged", "--keep-weights", *tiny, results=tmp_path / "ran", data=data)  # fmt: skip
    assert done.exit_code == 0, done.output
    (folder,) = (tmp_path / "ran" / "runs").glob("*/weights")
    done = clmerge("replay", str(folder), "--methods", "average", results=tmp_path / "again", data=data)
    assert done.exit_code == 0, done.output
    first, again = (read_record(next((tmp_path / n / "runs").glob("*/cell.json"))) for n in ("ran", "again"))
    assert numbers(again) == numbers(first)
    assert again["dataset"]["domains"] == first["dataset"]["domains"]
    for wrong, message in (
        ("tasks: [[0, 1], [2], [3]]", "is domain_incremental; list its domains"),
        ("domains: [0, 1, 1]", "list each of 0 to 2 once"),
    ):
        lines = (folder / "replay.yaml").read_text().splitlines()
        i = next(i for i, line in enumerate(lines) if line.startswith(("domains:", "tasks:")))
        rest = [line for line in lines[i + 1 :] if not line.startswith("- ")]
        (folder / "replay.yaml").write_text("\n".join([*lines[:i], wrong, *rest]))
        refused = clmerge("replay", str(folder), "--methods", "average", results=tmp_path / "no", data=data)
        assert refused.exit_code == 2
        assert message in refused.output


def test_the_command_refuses_another_task_count_in_one_line(data: Path, tmp_path: Path) -> None:
    done = clmerge("plan", "--datasets", str(data / "letters.yaml"), "--tasks", "2", "--protocol", "embedded",
                   results=tmp_path, data=data)  # fmt: skip
    assert done.exit_code == 2
    assert "2 tasks do not fit 'letters', which is domain-incremental with 3 domains, one a task; use 3" in done.output


# ---- what is printed ------------------------------------------------------------------------------------------------
def test_tables_say_domain_incremental_and_how_numbers_are_to_be_read(
    ran: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    rows = labelled(detailed_rows([ran[1][method] for method in ("average@merged", "finetune", "linear_probe")]))
    (block,) = blocks(rows)
    assert block.title == "letters, domain-incremental, T = 3, protocol embedded[train.epochs=1]"
    assert any("its latest form answers" in note and "task-aware numbers are the plain ones" in note
               for note in block.notes)  # fmt: skip
    assert not any("label space grows" in note for note in block.notes)
    assert any("only its head does, with every domain" in note for note in block.notes)
    with pytest.raises(LeftOut, match="share one head"):
        confusion([row | {"predictions": Path()} for row in rows], [])


def test_a_record_of_an_unknown_kind_is_named_in_one_line(
    ran: tuple[Path, dict[str, dict[str, Any]]],
) -> None:
    record = json.loads(json.dumps(ran[1]["finetune"]))
    record["coordinates"]["scenario"] = "online"
    with pytest.raises(UserError, match="unknown scenario 'online'"):
        blocks(labelled(detailed_rows([record])))
    assert set(WORDS) == set(SCENARIOS)
