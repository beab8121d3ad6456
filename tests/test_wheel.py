"""What is built for other machines: all files in one package, and the same code as here."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.common.paths import ROOT
from bench.registry import Registry
from tests.helpers.elsewhere import clmerge, python

pytestmark = pytest.mark.ray
SHIPPED = ("methods/*.py", "datasets/*.yaml", "suites/*.yaml", "reports/*.yaml", "reports/paper/*.yaml",
           "reports/published/*.yaml", "results/published/*.csv")  # fmt: skip
HASHES = (
    "import json\n"
    "from bench.plan.cell import MERGING_CODE, TRAINING_CODE\n"
    "from bench.registry import Registry\n"
    "from bench.registry.code_hash import code_of_class, code_of_modules\n"
    "registry = Registry.load()\n"
    "plugins = {**registry.trainers, **registry.rules}\n"
    "print(json.dumps([code_of_modules(*MERGING_CODE), code_of_modules(*TRAINING_CODE),\n"
    "                  {key: code_of_class(cls) for key, cls in plugins.items()}]))\n"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("clmerge-*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """A folder as the one of installed packages."""
    folder = wheel.parent / "site-packages"
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_a_wheel_has_one_package_and_every_file_that_comes_with_it(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"bench"}
    expected = {path.relative_to(ROOT) for pattern in SHIPPED for path in ROOT.glob(pattern)}
    assert {f"bench/shipped/{path.as_posix()}" for path in expected} == {n for n in names if "/shipped/" in n}
    kept_in_bench = {path for path in (ROOT / "bench").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(ROOT).as_posix() for path in kept_in_bench} <= names


def test_the_code_of_a_wheel_has_the_hashes_of_the_checkout(tmp_path: Path, installed: Path) -> None:
    there, here = (python("-c", HASHES, cwd=tmp_path, path=[path]) for path in (installed, ROOT))
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert len(json.loads(here.stdout)[2]) > 30


def test_a_wheel_works_in_an_empty_folder_and_writes_nothing_into_itself(tmp_path: Path, installed: Path) -> None:
    before, path = files_below(installed), [installed]
    where = python("-c", "import bench; print(bench.__file__)", cwd=tmp_path, path=path)
    assert Path(where.stdout.strip()) == installed / "bench" / "__init__.py"
    rows = json.loads(clmerge("list", "methods", "--json", cwd=tmp_path, path=path))
    assert {row["key"] for row in rows} == set(Registry.load().methods)
    assert {row["source"] for row in rows} == {"clmerge"}
    grid = ["--executor", "local", "--datasets", "digits", "--tasks", "2", "--seeds", "1",
            "--protocol-set", "per_dataset.digits.train.epochs=1", "--methods", "average@merged"]  # fmt: skip
    clmerge("run", *grid, cwd=tmp_path, path=path)
    (record,) = (tmp_path / "results" / "runs").glob("*/cell.json")
    assert json.loads(record.read_text(encoding="utf-8"))["status"] == "done"
    clmerge("report", cwd=tmp_path, path=path)
    assert (tmp_path / "reports" / "out" / "index.html").is_file()
    assert files_below(installed) == before


def test_an_editable_installation_is_the_checkout(tmp_path: Path) -> None:
    code = "import sys\nfrom hatchling.build import build_editable\nbuild_editable(sys.argv[1])\n"  # as pip calls it
    done = python("-c", code, tmp_path, cwd=ROOT, path=[ROOT])
    assert done.returncode == 0, done.stderr
    files = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    (places,) = (name for name in files.namelist() if name.endswith(".pth"))
    assert files.read(places).decode().strip() == str(ROOT)
    assert not any(name.startswith("bench/") for name in files.namelist())
