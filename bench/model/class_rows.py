"""Class rows of zero-shot heads: a file that ``clmerge text`` writes. Torch-free, so that planning can check it.

A safetensors file with ``rows`` (classes, D), float32: the text embedding of every class of a dataset, in the order of
its labels, of length 1 and already multiplied by exp(logit_scale); its metadata ``class_names`` is a JSON list.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common.errors import UserError
from bench.config.files import beside_presets
from bench.config.schema import HeadConfig

if TYPE_CHECKING:
    import numpy as np

MAKE = "make it with: clmerge text (clmerge text --help says how)"


def rows_file(config: HeadConfig) -> Path:
    """Where the rows lie (relative names: beside the presets).

    Raises:
        UserError: no file is named, or it is not there.
    """
    if config.text is None:
        raise UserError(f"protocol: head.text: missing, and head.kind is zero_shot; name a file of class rows; {MAKE}")
    file = beside_presets(config.text)
    if not file.is_file():
        raise UserError(f"protocol: head.text: no file {file}; {MAKE}")
    return file


def check_rows(config: HeadConfig, classes: int) -> None:
    """Whether there is a row for each of a dataset's classes.

    Raises:
        UserError: no file, another content, or another number of classes.
    """
    file, shape = _shape(config)
    if shape[0] != classes:
        raise UserError(f"protocol: head.text: {file} has {shape[0]} rows, the dataset {classes} classes; {MAKE}")


def read_rows(config: HeadConfig, classes: int, dim: int) -> np.ndarray:
    """The rows (>= classes, dim), float32.

    Raises:
        UserError: no file, another content, fewer classes, or rows of another length than the backbone's features.
    """
    from safetensors.numpy import load_file

    file, shape = _shape(config)
    if shape[0] < classes or shape[1] != dim:
        raise UserError(
            f"protocol: head.text: {file} has {shape[0]} rows of {shape[1]} numbers; at least {classes} of {dim}, the "
            f"size of the backbone's features, are needed; {MAKE}"
        )
    rows: np.ndarray = load_file(file)["rows"].astype("float32")
    return rows


def rows_digest(config: HeadConfig) -> str:
    """SHA-256 of the file."""
    return hashlib.sha256(rows_file(config).read_bytes()).hexdigest()


def _shape(config: HeadConfig) -> tuple[Path, list[int]]:
    from safetensors import SafetensorError, safe_open

    file = rows_file(config)
    try:
        with safe_open(file, framework="numpy") as opened:
            shape: list[int] = opened.get_slice("rows").get_shape()
    except SafetensorError as error:
        raise UserError(f"protocol: head.text: {file} holds no tensor 'rows' ({error}); {MAKE}") from None
    if len(shape) != 2:
        raise UserError(f"protocol: head.text: {file}: rows have shape {tuple(shape)}, not (classes, D); {MAKE}")
    return file, shape
