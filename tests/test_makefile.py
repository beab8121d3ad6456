"""What `make` says and deletes, in a copy of a repository that has results."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from bench.common.paths import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.skipif(shutil.which("make") is None, reason="no make here")]

KEPT = ("results/runs/a/cell.json", "results/runs/b/cell.json", "results/cache/trained/x.safetensors",
        "results/published/embedded.csv", "reports/embedded.yaml", "data/prepared/x.npy", ".venv/bin/python")  # fmt: skip
MADE_AGAIN = ("reports/out/index.html", "results/smoke/runs/a/cell.json", "results/ray/log", ".mypy_cache/x",
              ".pytest_cache/x", ".ruff_cache/x", ".import_linter_cache/x")  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (*KEPT, *MADE_AGAIN):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 3000)
    return tmp_path


def make(*arguments: str, folder: Path, typed: str | None = None) -> tuple[int, str]:
    """Exit status and output; ``typed`` on a terminal, where it is given."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "YES"}
    ours, theirs = pty.openpty() if typed is not None else (None, None)
    if ours is not None:
        os.write(ours, f"{typed}\n".encode())
    done = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=folder, env=environment, text=True, check=False,
        stdin=subprocess.DEVNULL if theirs is None else theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    for end in (ours, theirs):
        if end is not None:
            os.close(end)
    return done.returncode, done.stdout


def there(folder: Path, *names: str) -> set[str]:
    return {name for name in names if (folder / name).exists()}


def test_make_alone_prints_every_target_with_what_it_does(copy: Path) -> None:
    status, printed = make(folder=copy)
    assert status == 0
    makefile = (copy / "Makefile").read_text(encoding="utf-8")
    phony = makefile.split(".PHONY:")[1].splitlines()[0].split()
    assert {line.split()[0] for line in printed.splitlines()} == set(phony)
    assert all(len(line.split()) > 2 for line in printed.splitlines())


def test_clean_deletes_no_results(copy: Path) -> None:
    assert make("clean", folder=copy)[0] == 0
    assert there(copy, *MADE_AGAIN) == set()
    assert there(copy, *KEPT) == set(KEPT)


def test_results_are_not_deleted_where_nobody_can_be_asked(copy: Path) -> None:
    for target in ("clean-results", "distclean"):
        status, printed = make(target, folder=copy)
        assert status == 2
        assert "2 records, " in printed
        assert "YES=1" in printed
        assert there(copy, *KEPT) == set(KEPT)


@pytest.mark.parametrize(("typed", "left"), [("delete", 0), ("y", 2), ("", 2)])
def test_results_are_deleted_by_a_whole_word_on_a_terminal(copy: Path, typed: str, left: int) -> None:
    status, printed = make("clean-results", folder=copy, typed=typed)
    assert (status == 0) == (left == 0)
    assert ("nothing deleted" in printed) == (left > 0)
    assert len(there(copy, *KEPT[:2])) == left
    assert there(copy, *KEPT[3:]) == set(KEPT[3:])


def test_distclean_deletes_all_that_git_does_not_know_but_published_results(copy: Path) -> None:
    assert make("distclean", "YES=1", folder=copy)[0] == 0
    assert there(copy, *KEPT, *MADE_AGAIN) == {"results/published/embedded.csv", "reports/embedded.yaml"}


def test_results_elsewhere_are_those_that_are_deleted(copy: Path) -> None:
    shutil.copytree(copy / "results", copy / "other")
    assert make("clean-results", "YES=1", "RESULTS=other", folder=copy)[0] == 0
    assert there(copy, "other/runs", "other/cache", *KEPT) == set(KEPT)
