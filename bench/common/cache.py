"""Artifacts (trained tasks, statistics) kept under the hash of what made them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common.files import load_tensors, save_tensors

if TYPE_CHECKING:
    import torch


def key_of(*parts: Any) -> str:
    """A 128-bit hex key of JSON-able parts: the name under which their artifact is kept."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


class Store:
    """Artifacts (trained tasks, Fisher diagonals) by content key, as safetensors files with a JSON header.

    ``enabled=False`` (``--no-cache``) never reads and never writes: everything is computed anew.
    """

    def __init__(self, root: Path, enabled: bool = True) -> None:
        self.root, self.enabled = root, enabled

    def path(self, kind: str, key: str) -> Path:
        """Where the artifact lies, whether or not it is there."""
        return self.root / kind / key[:2] / f"{key}.safetensors"

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there (torch-free: the planner asks)."""
        return self.enabled and self.path(kind, key).exists()

    def load(self, kind: str, key: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and header, or None where the artifact is missing or damaged (it is then made again)."""
        if not self.has(kind, key):
            return None
        return load_tensors(self.path(kind, key))

    def save(self, kind: str, key: str, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
        """Keep an artifact."""
        if self.enabled:
            save_tensors(self.path(kind, key), tensors, header)
