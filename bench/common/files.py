"""Files that are either whole or not there: atomic writes, and tensors with a header."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write to a temporary name in the same folder, then rename: a reader never sees half a file."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends well, and vanishes when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp's 0600 would hide results from the others on a shared disk
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    """Write named tensors and a JSON header, atomically."""
    save_plain(path, tensors, {"clmerge": json.dumps(header)})


def save_plain(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors as a safetensors file that any program reads, atomically."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        # safetensors refuses tensors that share memory, as a plugin's state may with what is served.
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in plain.items()}
        plain = {n: t if owners[t.untyped_storage().data_ptr()] == n else t.clone() for n, t in plain.items()}
        save_file(plain, temporary, metadata=metadata)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Read what :func:`save_tensors` wrote; None where the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["clmerge"])  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None
