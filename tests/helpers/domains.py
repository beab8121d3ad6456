"""A small domain-incremental dataset: twelve letters, three font families, one family a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

OPTIONS = {
    "part": "stream", "classes": 12, "domains": "families",
    "faces_train": ["Sans", "Sans-Oblique", "SansMono-Bold", "Serif", "Serif-Bold"],
    "faces_test": ["Sans-Bold", "SansMono", "Serif-Italic"], "per_face_train": 6, "per_face_test": 3,
}  # fmt: skip
FIELDS: dict[str, Any] = {
    "title": "Letters by family", "layout": "glyphs", "options": OPTIONS, "classes": 12, "train": 12 * 5 * 6,
    "test": 12 * 3 * 3, "tasks": [3], "scenario": "domain_incremental",
    "image": {"size": 16, "channels": 1, "mean": [0.25], "std": [0.35]},
}  # fmt: skip


def write_letters(folder: Path, **changes: Any) -> Path:
    """``letters.yaml`` in ``folder``, with other fields where they are given."""
    path = folder / "letters.yaml"
    path.write_text(yaml.safe_dump({**FIELDS, **changes}))
    return path
