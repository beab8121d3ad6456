"""Where the files lie that come with the harness: beside ``bench/`` in a checkout, inside it where it is installed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from bench.common import installed

Kind = Literal["datasets", "protocols", "suites", "reports"]
KINDS: tuple[Kind, ...] = get_args(Kind)  #: of YAML files that are asked for by name

ROOT = Path(__file__).resolve().parents[2]  #: holds bench/: the repository, or the folder of installed packages
HARNESS = ROOT / "bench"
# A wheel has these folders inside bench/: at its top, `methods` and `datasets` would be packages of these names.
SHIPPED = HARNESS / "shipped" if (HARNESS / "shipped").is_dir() else ROOT

METHODS = SHIPPED / "methods"
DATASETS = SHIPPED / "datasets"
PROTOCOLS = HARNESS / "protocols"
SUITES = SHIPPED / "suites"
REPORTS = SHIPPED / "reports"
PUBLISHED_RESULTS = SHIPPED / "results" / "published"

_SHIPPED_OF: dict[Kind, Path] = {
    "datasets": DATASETS, "protocols": PROTOCOLS, "suites": SUITES, "reports": REPORTS,
}  # fmt: skip


def folders(kind: Kind) -> list[Path]:
    """Where files of that kind are looked for by name: the shipped folder, then those of installed packages."""
    return [_SHIPPED_OF[kind], *installed.folders(kind)]


def weights_folder() -> Path:
    """Where fetched weights are kept: ``CLMERGE_WEIGHTS``, or the user's cache; shared by all checkouts."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return Path(os.environ.get("CLMERGE_WEIGHTS") or cache / "clmerge" / "weights").expanduser()


def source_of(file: str | Path) -> str:
    """Who brought a file: ``clmerge``, an installed package with its version, or the file's own path."""
    path = Path(file)
    if any(folder in path.parents for folder in (METHODS, *_SHIPPED_OF.values())):
        return "clmerge"
    for kind in KINDS:
        for folder, package in installed.folders(kind).items():
            if folder in path.parents:
                return package
    return str(file)
