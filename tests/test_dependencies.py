"""pyproject.toml declares what the code imports, all of it and nothing else."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions

from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

from bench.common.paths import ROOT

OURS = {"bench", "methods", "tests", "benchmarks"}
#: declared and imported nowhere, and why
NOT_IMPORTED = {
    "pytest-timeout": "a plugin of pytest",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a command of make lint",
    "mypy": "a command of make lint",
    "import-linter": "a command of make lint",
    "types-psutil": "read by mypy",
    "types-pyyaml": "read by mypy",
    "types-tabulate": "read by mypy",
}
#: imported where it is installed: its package's name, which only an installation would tell
OPTIONAL = {"open_clip": "open-clip-torch"}


def normal(requirement: str) -> str:
    """The package's name as PEP 503 spells it, without versions and extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement, maxsplit=1)[0]).lower()


def declared() -> dict[str, set[str]]:
    """Packages by the list that names them; the dependencies of everybody are in ``""``."""
    project = ProjectMetadata(str(ROOT), PluginManager()).core
    lists = {"": project.dependencies, **project.optional_dependencies}
    return {name: {normal(requirement) for requirement in requirements} for name, requirements in lists.items()}


def imported(*folders: str) -> dict[str, str]:
    """Every package of others that a file of these folders imports anywhere, and one such file."""
    found = {}
    by_module = packages_distributions()
    for path in [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for module in {name.partition(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                packages = by_module.get(module, [OPTIONAL.get(module, module)])
                found[normal(packages[0])] = str(path.relative_to(ROOT))
    return found


def test_every_package_that_the_code_imports_is_declared() -> None:
    lists = declared()
    for_users = set().union(*(names for name, names in lists.items() if name != "dev"))
    for package, file in imported("bench", "methods").items():
        assert package in for_users, f"{file} imports {package}, which pyproject.toml does not declare"
    for package, file in imported("tests", "benchmarks").items():
        assert package in for_users | lists["dev"], f"{file} imports {package}, which pyproject.toml does not declare"


def test_every_declared_package_is_imported_or_has_a_reason() -> None:
    used = set(imported("bench", "methods", "tests", "benchmarks"))
    named = set().union(*declared().values())
    assert named - used - set(NOT_IMPORTED) == set(), "declared, but nothing imports it: remove it, or give a reason"
    assert set(NOT_IMPORTED) & used == set(), "imported after all: the reason is out of date"
    assert set(NOT_IMPORTED) <= named, "a reason for what is not declared"
