"""Configuration files: protocols (with what they are based on), datasets and suites, each checked as it is read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from bench.common.errors import UserError, unknown
from bench.common.paths import PROTOCOLS, Kind, folders, weights_folder
from bench.config.dotted import check_key, drop, flat, merged, put, value_at
from bench.config.schema import DatasetConfig, ImageConfig, ProtocolConfig, S, SuiteConfig, check


def read_yaml(path: Path, model: type[S], **extra: Any) -> S:
    """A validated configuration file.

    Raises:
        UserError: not readable, not YAML, or a key that is unknown, missing, of the wrong type or out of range.
    """
    return check({**extra, **_mapping(path)}, model, str(path))


def _mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return data


def yaml_files(kind: Kind, plugins: Iterable[Path] = ()) -> list[Path]:
    """Every YAML file that may be asked for by its stem: shipped, of installed packages, of plugin folders."""
    return [path for folder in [*folders(kind), *plugins] for path in sorted(folder.glob("*.yaml"))]


def named_file(name: str, files: Iterable[Path], what: str, where: str) -> Path:
    """The YAML file of that name among the files, or the path itself where one was given.

    Raises:
        UserError: no such name, and the nearest ones are named; or two files of that name.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"{where}: no such file {path}")
        return path
    files = list(files)
    named = list({path.resolve(): path for path in files if path.stem == name}.values())
    if not named:
        raise unknown(what, name, {path.stem for path in files}, where)
    if len(named) > 1:
        raise UserError(f"{where}: {what} {name!r} stands in {named[0]} and in {named[1]}; write the path of one")
    return named[0]


#: what a protocol says of itself as a whole: neither for one dataset or method, nor to be overridden
OF_ITSELF = ("key", "base", "inferred", "tuning", "variant_of")


_PROTOCOLS: dict[str, ProtocolConfig] = {}  #: those of this process, by their JSON


def protocol_of(data: dict[str, Any], where: str) -> ProtocolConfig:
    """``data`` as a protocol, which equal data share: it is checked once in a process.

    Raises:
        UserError: naming ``where`` and the key.
    """
    try:
        text = json.dumps(data, sort_keys=True, default=str)
    except TypeError:  # keys of several types, which no protocol has
        return check(data, ProtocolConfig, where)
    if text not in _PROTOCOLS:
        protocol = check(data, ProtocolConfig, where)
        whole = json.dumps(protocol.model_dump(mode="json"), sort_keys=True)  # with the defaults that data leaves out
        _PROTOCOLS[text] = _PROTOCOLS.setdefault(whole, protocol)
    return _PROTOCOLS[text]


def load_protocol(name: str, overrides: dict[str, Any] | None = None) -> ProtocolConfig:
    """A preset by name or a YAML file by path, over its ``base``, with ``{"train.epochs": 3}``-like overrides.

    Overrides stand above ``per_dataset`` and ``per_method``. The key names those that change something, so that equal
    protocols have equal keys.

    Raises:
        UserError: unknown preset or key, wrong value, bases in a circle.
    """
    path, where = named_file(name, yaml_files("protocols"), "protocol", "protocol"), "--protocol-set"
    data = _inherited(path, [])
    plain = protocol_of(data, str(path))
    if not overrides:
        return plain
    for key in overrides:
        check_key(ProtocolConfig, key, where)
        if key in OF_ITSELF:
            raise UserError(f"{where}: {key}: write a protocol file of your own (base: {name}) to change it")
    changing = [
        key for key, value in sorted(overrides.items()) if protocol_of(_overridden(data, {key: value}), where) != plain
    ]
    data = _overridden(data, overrides)
    protocol = protocol_of(data, where)
    told = [f"{key}={_spelled(value_at(protocol.model_dump(mode='json'), key))}" for key in changing]
    _check_entries(data, where)
    for key in overrides:
        if key.partition(".")[0] in protocol.unread:
            raise UserError(f"{where}: {key}: adapter is {protocol.adapter}, so nothing reads it; leave it out")
    return protocol.model_copy(
        update={"variant_of": plain.key, "key": f"{plain.key}[{','.join(told)}]"} if told else {}
    )


def _spelled(value: Any) -> str:
    """A checked value as the protocol's key has it: one spelling for 1e-3, 0.001 and "0.001"."""
    if isinstance(value, str):  # below a mapping nothing says what a number's text is
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_spelled, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_spelled(each)}" for name, each in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _overridden(data: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    data = deepcopy(data)
    for table in ("per_dataset", "per_method"):
        for key, entry in product(overrides, (data.get(table) or {}).values()):
            drop(entry, key)
    if data.get("per_dataset"):
        data["per_dataset"] = {name: entry for name, entry in data["per_dataset"].items() if entry}
    for key, value in overrides.items():
        put(data, key, value)
    return data


def _inherited(path: Path, above: list[Path]) -> dict[str, Any]:
    """A protocol file laid over its base, checked; ``above`` are the files that led to it."""
    data = _mapping(path)
    base, chain = data.get("base"), [*above, path.resolve()]
    if base is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base: expected the name of a preset or a file (found {base!r})")
        is_file = base.endswith((".yaml", ".yml"))
        name = str(path.parent / base) if is_file else base
        file = named_file(name, yaml_files("protocols"), "protocol", f"{path}: base")
        if file.resolve() in chain:
            raise UserError(f"{path}: base: {' > '.join(p.stem for p in [*chain, file])} is a circle")
        inherited = _inherited(file, chain)
        own = {"title", "about", "key", "base", "tuning"}
        data = merged({key: value for key, value in inherited.items() if key not in own}, data)
    data = {"key": path.stem, **data}
    protocol = protocol_of(data, str(path))
    for dotted in protocol.inferred:
        check_key(ProtocolConfig, dotted, f"{path}: inferred")
    _check_entries(data, str(path))
    return data


def _check_entries(data: dict[str, Any], where: str) -> None:
    """Refuse keys of ``per_dataset`` and ``per_method`` that nothing reads; values are checked where they are used."""
    for table in ("per_dataset", "per_method"):
        for name, entry in (data.get(table) or {}).items():
            for dotted, _ in flat(entry):
                first = dotted.partition(".")[0]
                if first in (*OF_ITSELF, "title", "about", "per_dataset", "per_method"):
                    raise UserError(f"{where}: {table}.{name}: {first} is one for the whole protocol")
                if table == "per_dataset" or first != "options":
                    check_key(ProtocolConfig, dotted, f"{where}: {table}.{name}")


def weights_file(protocol: ProtocolConfig) -> Path:
    """Where the backbone's weights lie (relative names: beside the presets, then where fetched ones are kept)."""
    name = str(protocol.backbone.weights)
    beside, kept = beside_presets(name), weights_folder() / Path(name).expanduser()
    return kept if kept.is_file() and not beside.exists() else beside


def beside_presets(name: str) -> Path:
    """A file that a protocol names: as it is where absolute, else beside the presets, shipped or installed."""
    path = Path(name).expanduser()
    return next((folder / path for folder in folders("protocols") if (folder / path).is_file()), PROTOCOLS / path)


def for_dataset(protocol: ProtocolConfig, dataset: str) -> ProtocolConfig:
    """The protocol with its overrides for one dataset applied."""
    data = {**merged(protocol.model_dump(), protocol.per_dataset.get(dataset, {})), "per_dataset": {}}
    return protocol_of(data, f"protocol {protocol.key}: per_dataset.{dataset}")


def shown_image(protocol: ProtocolConfig, dataset: DatasetConfig) -> ImageConfig:
    """What the backbone is shown of this dataset: the protocol's ``image``, or the images as they are.

    Raises:
        UserError: the protocol leaves it to the dataset, whose images have no one size or no statistics.
    """
    if protocol.image is not None:
        return protocol.image
    own = dataset.image
    if own.size is None or not (len(own.mean) == len(own.std) == own.channels):
        raise UserError(
            f"protocol {protocol.key}: image: missing, and dataset {dataset.key} gives no size, mean and std of its "
            "own; use a protocol that says what the backbone is shown (clmerge list protocols)"
        )
    return ImageConfig(size=own.size, channels=own.channels, mean=own.mean, std=own.std)


def load_dataset_config(name: str, extra: list[Path]) -> DatasetConfig:
    """A dataset by key (``datasets/``, installed packages, plugin folders) or by the path of its YAML."""
    path = named_file(name, yaml_files("datasets", extra), "dataset", "datasets")
    return read_yaml(path, DatasetConfig, key=path.stem)


def load_suite(name: str) -> SuiteConfig:
    """A suite by name (``suites/``, installed packages) or by the path of its YAML."""
    path = named_file(name, yaml_files("suites"), "suite", "--suite")
    return read_yaml(path, SuiteConfig, key=path.stem)
