"""Configuration: overrides reach what they name, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.code import ROOT
from bench.config import for_dataset, load_protocol, load_suite
from bench.errors import UserError
from bench.grid import expand, parse_seeds
from bench.plan import pack
from bench.registry import Registry


def test_an_override_stands_above_per_dataset() -> None:
    plain = load_protocol("embedded")
    assert for_dataset(plain, "glyphs").train.epochs == 2
    assert for_dataset(plain, "digits").train.epochs == 10
    changed = load_protocol("embedded", {"train.epochs": 4})
    assert for_dataset(changed, "digits").train.epochs == 4
    only = load_protocol("embedded", {"per_dataset.digits.train.epochs": 3})
    assert (for_dataset(only, "digits").train.epochs, for_dataset(only, "glyphs").train.epochs) == (3, 2)
    assert changed.key == "embedded[train.epochs=4]"
    assert plain.tuned["ewc"]["lam"] == load_protocol("embedded", {"tuned.ewc.form": "online"}).tuned["ewc"]["lam"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.epochs", 0), ("train.lr", -1), ("adapter.rank", 0), ("adapter.kind", "dora"), ("adapter.targets", ["o"]),
     ("train.schedule", "step"), ("threads", 0), ("val_fraction", 1.0), ("head", 3), ("per_dataset.digits.trian", {})],
)  # fmt: skip
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(UserError):
        for_dataset(load_protocol("embedded", {key: value}), "digits")


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("0,1,7", [0, 1, 7]), ("3-5", [3, 4, 5]), ("7,", [7]), ("1-2,9", [1, 2, 9])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,1", "5-3", "1.5", "99999999999"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UserError, match="neither a count"):
        parse_seeds(text)


def test_trials_keep_trunk_mates_together_and_fill_the_slots() -> None:
    cells, _ = expand(load_suite("embedded"), Registry.load(), ROOT / "data", [])
    for slots in (1, 2, 8, 64):
        trials = pack(cells, slots)
        assert sorted(c.id for t in trials for c in t) == sorted(c.id for c in cells)
        place = {c.id: i for i, trial in enumerate(trials) for c in trial}
        for a in cells:
            for b in cells:
                if a.chain_is_shared and a.train_keys == b.train_keys:
                    assert place[a.id] == place[b.id]
    assert len(pack(cells, 1)) == 12  # a stream a trial
    assert len(pack(cells, 64)) > 64


def test_shipped_suites_resolve(tmp_path: Path) -> None:
    registry = Registry.load()
    for file in sorted((ROOT / "suites").glob("*.yaml")):
        cells, _ = expand(load_suite(str(file)), registry, ROOT / "data", [])
        assert cells
