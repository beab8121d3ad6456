"""Rows as comma-separated text, the same everywhere. Standard library only."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> str:
    """A header and a line a row; ``None`` and what a row lacks are empty fields, numbers are unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
