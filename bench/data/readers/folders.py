"""Folders of image files as readers see them: found, listed in natural order, and told apart from wrong layouts."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig
from bench.data.readers.reader import where

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def natural(name: str) -> tuple[list[str | int], str]:
    """A sort key under which ``2`` comes before ``10``."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name))], name


def below(data_dir: Path, path: str) -> Path:
    """An option's path: relative to the data folder, absolute, or from ``~``."""
    return data_dir / Path(path).expanduser()


def missing(config: DatasetConfig, folder: Path, needed: Iterable[str]) -> str | None:
    """One line with what to do where something that a layout needs is not in ``folder``, else None. A few stats."""
    for name in needed:
        if (folder / name).exists():
            continue
        deeper = folder / folder.name
        if (deeper / name).exists():
            return f"{folder / name}: not found, but {deeper / name} is: move what is in {deeper} to {folder}"
        return f"{folder / name}: not found; {how(config)}"
    return None


def how(config: DatasetConfig) -> str:
    """What a user does to have the files of this dataset."""
    if config.get:
        return config.get
    return f"get it with: clmerge data get {config.key}" if config.files else "put it there, or mend the YAML's options"


def need(config: DatasetConfig, line: str | None) -> None:
    """Stop where :func:`missing` had something to say.

    Raises:
        UserError: with that line.
    """
    if line is not None:
        raise UserError(f"{where(config)}: {line}")


def lines(config: DatasetConfig, path: Path) -> list[str]:
    """The lines of a small text file that are not empty.

    Raises:
        UserError: not there, not readable, or not UTF-8.
    """
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{where(config)}: {path}: {error.strerror or error}; {how(config)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{where(config)}: {path}: not a text file; {how(config)}") from None


def folders_in(config: DatasetConfig, folder: Path) -> list[Path]:
    """The folders in ``folder`` in natural order, hidden ones and Macintosh extras left out.

    Raises:
        UserError: not there, not readable, or without a folder.
    """
    found = [folder / name for name, is_folder in _entries(config, folder) if is_folder]
    if not found:
        raise UserError(f"{where(config)}: {folder}: no folder in it; {how(config)}")
    return found


def images_in(config: DatasetConfig, folder: Path) -> list[Path]:
    """The image files in ``folder`` in natural order, by their extension; hidden ones and Macintosh extras left out.

    Raises:
        UserError: not there, not readable, or without an image.
    """
    names = [name for name, is_folder in _entries(config, folder) if not is_folder]
    found = [folder / name for name in names if os.path.splitext(name)[1].lower() in IMAGES]
    if not found:
        raise UserError(f"{where(config)}: {folder}: no image in it ({' '.join(sorted(IMAGES))}); {how(config)}")
    return found


def need_files(config: DatasetConfig, listed_in: Path, files: Iterable[Path]) -> None:
    """Stop where listed files are not there. Every folder is read once: a stat for each of half a million is slow.

    Raises:
        UserError: how many are not there, and the first.
    """
    by_folder: defaultdict[str, list[str]] = defaultdict(list)
    for file in files:
        folder, name = os.path.split(file)
        by_folder[folder].append(name)
    absent = []
    for folder, names in by_folder.items():
        there = {name for name, _ in _entries(config, Path(folder))} if os.path.isdir(folder) else set()
        absent += [os.path.join(folder, name) for name in names if name not in there]
    if absent:
        raise UserError(
            f"{where(config)}: {listed_in}: {len(absent)} of the files it lists are not there, the first: {absent[0]}; "
            f"{how(config)}"
        )


def named(config: DatasetConfig, file: Path | None, keys: list[str]) -> tuple[str, ...]:
    """Names of classes from a file of ``key name, other name`` lines; other lines are passed over, and a key that has
    none, or shares its name, keeps its key (in brackets behind the name).

    Raises:
        UserError: the file is not readable.
    """
    pairs = [line.split(maxsplit=1) for line in lines(config, file)] if file else []
    said = {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
    names = [said.get(key, key) for key in keys]
    return tuple(name if names.count(name) == 1 else f"{name} ({key})" for name, key in zip(names, keys, strict=True))


def _entries(config: DatasetConfig, folder: Path) -> list[tuple[str, bool]]:
    try:
        with os.scandir(folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise UserError(f"{where(config)}: {folder}: {error.strerror or error}; {how(config)}") from None
    return sorted(found, key=lambda entry: natural(entry[0]))
