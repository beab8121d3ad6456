"""Where the repository's own folders lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  #: of the repository

PROTOCOLS = ROOT / "bench" / "protocols"
DATASETS = ROOT / "datasets"
SUITES = ROOT / "suites"
