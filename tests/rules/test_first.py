"""theta*_1 served for ever; first-session adaptation, and what RanPAC and APER fit to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import normalize, one_hot

from bench.common.seeds import torch_rng
from bench.method.weights import Weights
from bench.plan.cell import Cell
from bench.run.cell import run_cell
from bench.run.workbench import Workbench
from tests.run.test_cell import bench, cells, numbers

SMALL = {"head.projection": 60, "head.ridge": 3.0}


def theta_1(cell: Cell, workbench: Workbench) -> Weights:
    """What the first task left, out of the cache."""
    as_run = replace(cell, data_digest=workbench.stream(cell).digest)
    kept = workbench.store.load("train", as_run.train_keys[1])
    assert kept is not None
    return Weights(kept[0]["weights"], workbench.backbone(cell).pretrained.layout)


def test_the_first_tasks_model_is_served_for_ever_and_nothing_else_is_trained_of_the_backbone(tmp_path: Path) -> None:
    plain, session, wasteful = cells("average@merged", "first_session+first@previous", "first@pretrained")
    of = {cell.method.key: run_cell(cell, bench(tmp_path)) for cell in (plain, session, wasteful)}
    digests = {key: [task["served_digest"] for task in record["tasks"]] for key, record in of.items()}
    first = digests["average_merged"][0]
    assert digests[session.method.key] == digests[wasteful.method.key] == [first] * 3
    trained = [task["trained_digest"] for task in of[session.method.key]["tasks"]]
    assert trained == [first] * 3  # later tasks train heads on theta*_1
    assert len({task["trained_digest"] for task in of[wasteful.method.key]["tasks"]}) == 3
    assert of[session.method.key]["totals"]["carried_bytes"] == 0
    assert all(task["opt_steps"] > 0 for task in of[session.method.key]["tasks"])  # heads have the same budget


def test_served_from_anywhere_it_is_the_same_where_no_head_is_trained_for_it(tmp_path: Path) -> None:
    starts = cells(*(f"first_session+first@{start}/ncm" for start in ("previous", "merged", "pretrained")))
    records = [run_cell(cell, bench(tmp_path)) for cell in starts]
    assert records[0]["counts"] == records[1]["counts"] == records[2]["counts"]


def test_ranpac_and_aper_are_brute_force_on_the_first_tasks_model(tmp_path: Path) -> None:
    ranpac, aper = cells("ranpac", "aper", **SMALL)
    workbench = bench(tmp_path)
    records = {cell.method.key: run_cell(cell, workbench) for cell in (ranpac, aper)}
    assert records["aper"]["totals"]["train_s_spent"] == 0  # they share every training
    stream, backbone, served = workbench.stream(ranpac), workbench.backbone(ranpac), theta_1(ranpac, workbench)
    train, test = (torch.cat([getattr(task, name) for task in stream.tasks]) for name in ("train", "test"))
    y, truth = stream.train_columns[train], stream.test_columns[test]

    def both(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            return backbone.features(backbone.pretrained, images), backbone.features(served, images)

    (old, new), (old_test, new_test) = both(stream.train_images[train]), both(stream.test_images[test])
    hits = {}
    P = torch.randn(new.shape[1], 60, generator=torch_rng("projection", ranpac.run_seed), dtype=torch.float64)
    h, targets = torch.relu(new.double() @ P), one_hot(y).double()
    W = torch.linalg.inv(h.T @ h + 3.0 * torch.eye(60)) @ h.T @ targets
    hits["ranpac"] = int(((torch.relu(new_test.double() @ P) @ W).argmax(1) == truth).sum())
    x, x_test = torch.cat([old, new], 1).double(), torch.cat([old_test, new_test], 1).double()
    means = torch.stack([x[y == column].mean(0) for column in range(10)])
    hits["aper"] = int(((normalize(x_test, dim=1) @ normalize(means, dim=1).T).argmax(1) == truth).sum())
    for key, record in records.items():
        assert abs(sum(correct for correct, _ in record["counts"][-1]) - hits[key]) <= 1  # a tie in float32
    assert numbers(records["ranpac"]) != numbers(records["aper"])
