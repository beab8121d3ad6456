"""Shared by the tests of the equations: one thread, the shipped plugins, a tiny real stream and its backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from bench.config.files import load_dataset_config, load_protocol, shown_image
from bench.config.schema import ProtocolConfig
from bench.data.dataset import Dataset, load_dataset
from bench.data.stream import Stream
from bench.model.backbone import Backbone
from bench.registry import Registry
from tests.helpers.toy import Golden

torch.set_num_threads(1)  # the number of threads changes bits
settings.register_profile("steady", deadline=None)  # a busy machine is no failure
settings.load_profile("steady")


KINDS = ("unit", "run", "ray")
OF_FOLDER = {"run": "run", "checks": "run", "commands": "run", "execute": "ray"}  #: tests elsewhere are unit tests
TRAIN = {"stream", "backbone", "full_backbone", "live", "place", "ran"}  #: fixtures that train, or run the command


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is of one kind: ``unit``, ``run`` (trains a model or runs the command) or ``ray`` (starts processes)."""
    for item in items:
        if not any(item.get_closest_marker(kind) for kind in KINDS):
            uses = TRAIN & set(getattr(item, "fixturenames", ()))
            folder = item.path.relative_to(Path(__file__).parent).parts[0]
            item.add_marker(OF_FOLDER.get(folder, "run" if uses else "unit"))


@pytest.fixture(scope="session", autouse=True)
def _the_checkout_stays_clean() -> Iterator[None]:
    """A test that writes into the checkout's own results would put its cells into somebody's report."""
    folder = Path(__file__).parent.parent / "results"
    before = sorted(folder.glob("runs/*"))
    yield
    assert sorted(folder.glob("runs/*")) == before, f"a test wrote into {folder}"


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="session")
def protocol() -> ProtocolConfig:
    """One epoch: ten optimiser steps a task on :func:`stream`."""
    return load_protocol("embedded", {"train.epochs": 1})


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(load_dataset_config("digits", []), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def stream(digits: Dataset) -> Stream:
    return Stream(digits, 2, class_order_seed=0)


@pytest.fixture(scope="session")
def backbone(protocol: ProtocolConfig) -> Backbone:
    return Backbone(protocol, shown_image(protocol, load_dataset_config("digits", [])))


@pytest.fixture(scope="session")
def full_backbone() -> Backbone:
    """All weights adapted."""
    full = load_protocol("embedded", {"adapter": "full"})
    return Backbone(full, shown_image(full, load_dataset_config("digits", [])))


@pytest.fixture
def golden(record_property: Callable[[str, object], None]) -> Iterator[Callable[[str], Golden]]:
    """Opens a file of reference numbers; `pytest -k golden` ends with the largest error seen in each."""
    opened: list[Golden] = []

    def open_one(name: str) -> Golden:
        opened.append(Golden(name))
        return opened[-1]

    yield open_one
    for g in opened:
        record_property(LARGEST + g.name, g.worst)


LARGEST = "largest error of "


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if "golden" in config.getoption("keyword"):
        terminalreporter.section("largest absolute error of each file of reference numbers")
        errors: dict[str, float] = {}
        for report in terminalreporter.getreports(""):  # of teardowns, which is where an error is known
            for name, error in report.user_properties if report.when == "teardown" else []:
                errors[name] = max(error, errors.get(name, 0.0))
        for name, error in sorted(errors.items()):
            terminalreporter.line(f"{name.removeprefix(LARGEST):32s} {error:.1e}")
