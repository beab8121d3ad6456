"""examples/clmerge-halfway: an installed package brings a method, a dataset, a protocol, a suite and a report."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.common.paths import ROOT
from tests.helpers.elsewhere import clmerge, python

pytestmark = pytest.mark.ray

BROUGHT = {"methods": "halfway", "rules": "midpoint", "datasets": "digits_few", "protocols": "halfway",
           "suites": "halfway"}  # fmt: skip


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that it is installed in; nothing is downloaded."""
    source = tmp_path_factory.mktemp("source") / "clmerge-halfway"
    shutil.copytree(ROOT / "examples" / "clmerge-halfway", source)
    folder = tmp_path_factory.mktemp("site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
               "--no-build-isolation", "--target", str(folder), str(source)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("what", "key"), BROUGHT.items())
def test_what_the_package_brings_is_listed_with_its_source(tmp_path: Path, package: Path, what: str, key: str) -> None:
    rows = json.loads(clmerge("list", what, "--json", cwd=tmp_path, path=[ROOT, package]))
    sources = {row["key"]: row["source"] for row in rows}
    assert sources.pop(key) == "clmerge-halfway 0.1.0"
    assert set(sources.values()) == {"clmerge"}


def test_its_suite_runs_under_its_protocol_and_its_report_is_written(tmp_path: Path, package: Path) -> None:
    where = {"cwd": tmp_path, "path": [ROOT, package]}
    narrowed = ["--suite", "halfway", "--executor", "local", "--tasks", "2", "--methods", "halfway"]
    clmerge("run", *narrowed, "--protocol-set", "train.epochs=1", **where)  # type: ignore[arg-type]
    (file,) = (tmp_path / "results" / "runs").glob("*/cell.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["status"], record["coordinates"]["variant"]) == ("done", "plain+midpoint@merged")
    assert record["coordinates"]["dataset"] == "digits_few"
    clmerge("report", "--report", "halfway", **where)  # type: ignore[arg-type]
    assert "The midpoint beside the running average" in (tmp_path / "reports" / "out" / "index.html").read_text()


def test_what_is_broken_in_a_package_is_one_line_and_the_rest_is_listed(tmp_path: Path, package: Path) -> None:
    broken = tmp_path / "site-packages"
    shutil.copytree(package, broken)
    (broken / "clmerge_halfway" / "method.py").write_text("import nowhere_to_be_found\n")
    shutil.rmtree(broken / "clmerge_halfway" / "datasets")
    done = python("-m", "bench", "list", "methods", "--json", cwd=tmp_path, path=[ROOT, broken])
    assert done.returncode == 0
    assert "average_merged" in {row["key"] for row in json.loads(done.stdout)}
    assert done.stderr.splitlines() == [
        "clmerge: package clmerge-halfway 0.1.0: entry point 'halfway' of clmerge.plugins (clmerge_halfway.method): "
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'; what it brings is left out; mend or uninstall the "
        "package"
    ]
    done = python("-m", "bench", "list", "datasets", "--json", cwd=tmp_path, path=[ROOT, broken])
    assert "digits" in {row["key"] for row in json.loads(done.stdout)}
    (line,) = done.stderr.splitlines()
    assert "entry point 'halfway' of clmerge.datasets (clmerge_halfway.datasets): no such folder in the package" in line
    done = python("-m", "bench", "plan", "--methods", "halfway", cwd=tmp_path, path=[ROOT, broken])
    assert done.returncode == 2
    assert "unknown method 'halfway'" in done.stderr


def test_a_name_that_two_bring_is_refused(tmp_path: Path, package: Path) -> None:
    (tmp_path / "digits_few.yaml").write_text(
        (package / "clmerge_halfway" / "datasets" / "digits_few.yaml").read_text()
    )
    plan = ["plan", "--plugins", str(tmp_path), "--datasets", "digits_few", "--methods", "average@merged"]
    done = python("-m", "bench", *plan, cwd=tmp_path, path=[ROOT, package])
    assert done.returncode == 2
    assert "dataset 'digits_few' stands in" in done.stderr
    assert "write the path of one" in done.stderr
