"""Every file that a number comes from counts, and none that has nothing to do with it."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

from bench.common.paths import ROOT
from bench.config.schema import SuiteConfig
from bench.method import Rule
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.plan.hashed_code import HEAD_CODE, MERGING_CODE, NO_NUMBERS, REPLAY_CODE, TRAINING_CODE
from bench.registry import Registry, code_hash
from bench.statistics import STATISTICS, code_files

REGISTRY = Registry.load()


def cell(method: str) -> Cell:
    suite = SuiteConfig(key="t", protocol="embedded", datasets=["digits"], tasks=[2], methods=[method], seeds="1")
    [found] = expand(suite, REGISTRY, ROOT / "data", [])[0]
    return found


def test_the_loop_is_in_the_code_of_every_cell() -> None:
    assert "run/cell.py" in MERGING_CODE
    assert "method/chain.py" in MERGING_CODE
    assert "run/train.py" in TRAINING_CODE
    for name in (*MERGING_CODE, *TRAINING_CODE, *REPLAY_CODE, *HEAD_CODE.values(), *NO_NUMBERS):
        assert (ROOT / "bench" / name).exists(), name


def reached(start: str) -> set[str]:
    """Every file of bench/ that one imports, at its top or inside a function, and those in turn."""
    house, waiting, files = ROOT / "bench", [ROOT / "bench" / start], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in files:
            continue
        files.add(file)
        for name in code_hash._names_imported(file, ""):
            place = ROOT.joinpath(*name.split("."))
            found = [f for f in (place.with_suffix(".py"), place / "__init__.py") if f.is_file()]
            waiting += [f for f in found if house in f.parents]
    return {file.relative_to(house).as_posix() for file in files}


def test_every_file_that_a_run_reaches_is_hashed_or_makes_no_numbers_for_a_reason() -> None:
    of_some = {file for key in STATISTICS for file in code_files(key)}
    hashed = {*TRAINING_CODE, *MERGING_CODE, *REPLAY_CODE, *HEAD_CODE.values(), *of_some}
    files = reached("run/cell.py")
    assert {"method/chain.py", "statistics/base.py", "run/write_record.py", "run/resume.py"} <= files
    faces = {file for file in files if file.endswith("__init__.py") and file not in NO_NUMBERS}
    unlisted = {file for file in files - hashed - faces if not any(file.startswith(name) for name in NO_NUMBERS)}
    assert unlisted == set(), "put each into a list of bench/plan/hashed_code.py"
    assert not hashed & set(NO_NUMBERS)
    for name, reason in NO_NUMBERS.items():
        assert reason
        assert any(file == name or file.startswith(name) for file in files), f"{name} is not reached any more"


def test_faces_of_folders_hold_nothing_but_imports() -> None:
    for file in reached("run/cell.py"):
        if (
            file.endswith("__init__.py")
            and file not in NO_NUMBERS
            and not file.startswith(("registry/", "data/readers"))
        ):
            body = ast.parse((ROOT / "bench" / file).read_text()).body
            assert all(isinstance(node, ast.Expr | ast.ImportFrom | ast.Import | ast.Assign) for node in body), file


def test_only_the_statistics_that_a_method_may_read_count() -> None:
    names = ("average", "regmean", "pm", "ewc", "fisher:kind=exact")
    of = {name: cell(name)._statistics_code() for name in names}
    fisher, gram = ["statistics/base.py", "statistics/fisher.py"], ["statistics/base.py", "statistics/gram.py"]
    assert of == {"average": [], "regmean": gram, "pm": fisher, "ewc": fisher, "fisher:kind=exact": fisher}

    class Silent(Rule):
        """Declares nothing, and may ask."""

        key, data = "silent", "labelled"

    method = dataclasses.replace(cell("average").method, rule=Silent)
    asks = dataclasses.replace(cell("average"), method=method)._statistics_code()
    assert asks == sorted({file for key in STATISTICS for file in code_files(key)})
