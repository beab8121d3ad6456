"""Image files named by split lists: lines of ``path label``, or YAML with ``data`` (paths) and ``targets`` (labels)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.folders import below, how, lines, missing, named, need, need_files
from bench.data.readers.reader import Listing, where

VERSION = 1  # raise it when the same options give another listing


class ListsOptions(Section):
    """Options of ``layout: lists``. Paths are relative to the data folder."""

    root: str  #: folder that the listed paths start from
    train: list[str] = Field(min_length=1)  #: list files, read in this order
    test: list[str] = Field(min_length=1)
    strip: str = ""  #: what every listed path starts with and ``root`` already says
    domains: Literal["none", "folder"] = "none"  #: folder: the first folder of its path in ``root``
    names: str | None = None  #: file of ``folder name`` lines; None: classes are named as their folders


def why_not(config: DatasetConfig, data_dir: Path) -> str | None:
    """One line where the folder or a list is not there."""
    options = check(config.options, ListsOptions, f"{where(config)}: options")
    needed = [options.root, *options.train, *options.test, *([options.names] if options.names else [])]
    return next(filter(None, (missing(config, below(data_dir, path), (".",)) for path in needed)), None)


def sources(config: DatasetConfig, data_dir: Path) -> list[Path]:
    """The folder, the lists and the file of names."""
    options = check(config.options, ListsOptions, f"{where(config)}: options")
    named_files = [options.names] if options.names else []
    return [below(data_dir, path) for path in (options.root, *options.train, *options.test, *named_files)]


def read(config: DatasetConfig, data_dir: Path) -> Listing:
    """The listed files in the order of the lists. Labels are the lists' own, 0 to classes - 1.

    A class is named as the folder of its files; by its number where its files, or those of two classes, do not agree.

    Raises:
        UserError: a wrong option, a list with another checksum than the YAML's, a line that is no path and label, a
            label out of range, a file that is listed twice or not there, a path that leads out of ``root``.
    """
    options = check(config.options, ListsOptions, f"{where(config)}: options")
    need(config, why_not(config, data_dir))
    sides: list[tuple[list[Path], np.ndarray]] = []
    seen: dict[Path, Path] = {}
    for names in (options.train, options.test):
        files: list[Path] = []
        labels: list[int] = []
        for source in (below(data_dir, name) for name in names):
            paths, targets = _entries(config, source)
            own = [_file(config, source, below(data_dir, options.root), path, options.strip) for path in paths]
            need_files(config, source, own)
            for file in own:
                if file in seen:
                    raise UserError(f"{where(config)}: {file} is listed twice: in {seen[file]} and in {source}")
                seen[file] = source
            files += own
            labels += targets
        sides.append((files, np.array(labels, dtype=np.int64)))
    (train_files, train_labels), (test_files, test_labels) = sides
    folders = _folders(train_files, train_labels, config.classes)
    class_names = named(config, below(data_dir, options.names) if options.names else None, folders)
    listing = Listing(train_files, train_labels, test_files, test_labels, class_names)
    return listing if options.domains == "none" else _with_domains(config, listing, below(data_dir, options.root))


def _with_domains(config: DatasetConfig, listing: Listing, root: Path) -> Listing:
    """Domains are numbered in the order of their names."""
    for file in (*listing.train_files, *listing.test_files):
        if file.parent == root:
            raise UserError(f"{where(config)}: {file}: lies in no folder, so options.domains has no domain for it")
    train, test = ([f.relative_to(root).parts[0] for f in files] for files in (listing.train_files, listing.test_files))
    names = sorted({*train, *test})
    numbers = {name: i for i, name in enumerate(names)}
    train_domains, test_domains = (np.array([numbers[n] for n in side], dtype=np.int64) for side in (train, test))
    return listing._replace(train_domains=train_domains, test_domains=test_domains, domain_names=tuple(names))


def _entries(config: DatasetConfig, source: Path) -> tuple[list[str], list[int]]:
    content = lines(config, source)
    stated = next((file.md5 for file in config.files if file.name == source.name), None)
    if stated is not None:
        found = hashlib.md5(source.read_bytes(), usedforsecurity=False).hexdigest()
        if found != stated:
            raise UserError(
                f"{where(config)}: {source}: its MD5 is {found}, but {stated} is the list that is meant; {how(config)}"
            )
    if source.suffix in (".yaml", ".yml"):
        paths, targets = _of_yaml(config, source)
    else:
        pairs = [line.rsplit(maxsplit=1) for line in content]
        bad = next((i for i, pair in enumerate(pairs, 1) if len(pair) != 2 or not pair[1].isdecimal()), None)
        if bad is not None:
            raise UserError(f"{where(config)}: {source}, entry {bad}: {content[bad - 1]!r} is no path and label")
        paths, targets = [path for path, _ in pairs], [int(label) for _, label in pairs]
    wrong = next((i for i, label in enumerate(targets) if not 0 <= label < config.classes), None)
    if wrong is not None:
        raise UserError(
            f"{where(config)}: {source}: {paths[wrong]}: label {targets[wrong]} is out of range "
            f"(0 to {config.classes - 1})"
        )
    return paths, targets


def _of_yaml(config: DatasetConfig, source: Path) -> tuple[list[str], list[int]]:
    # The C loader where there is one: the Python one takes seconds for a list of 24,000 files.
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        found = yaml.load(source.read_text(encoding="utf-8"), Loader=loader)
        paths, targets = found["data"], found["targets"]
    except yaml.YAMLError as error:
        raise UserError(f"{where(config)}: {source}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (KeyError, TypeError):
        raise UserError(f"{where(config)}: {source}: no keys 'data' and 'targets'") from None
    if not _all(paths, str) or not _all(targets, int) or len(paths) != len(targets):
        raise UserError(f"{where(config)}: {source}: 'data' and 'targets' are not a path and a whole number each")
    return list(paths), list(targets)


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, Sequence) and all(type(value) is kind for value in values)


def _file(config: DatasetConfig, source: Path, root: Path, path: str, strip: str) -> Path:
    if not path.startswith(strip):
        raise UserError(f"{where(config)}: {source}: {path}: does not start with options.strip, {strip!r}")
    inner = path[len(strip) :]
    if inner.startswith("/") or ".." in PurePosixPath(inner).parts:
        raise UserError(f"{where(config)}: {source}: {path}: leads out of {root}")
    return root / inner


def _folders(files: list[Path], labels: np.ndarray, classes: int) -> list[str]:
    of: list[set[str]] = [set() for _ in range(classes)]
    for file, label in zip(files, labels.tolist(), strict=True):
        of[label].add(file.parent.name)
    names = ["/".join(sorted(own)) for own in of]
    clear = all(len(own) == 1 for own in of) and len(set(names)) == classes
    return names if clear else [str(label) for label in range(classes)]
