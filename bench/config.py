"""Typed configuration: protocols, datasets and suites, one YAML each; a mistake names the file and the key."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml

from bench.code import ROOT
from bench.errors import UserError, unknown

PROTOCOLS = ROOT / "bench" / "protocols"
DATASETS = ROOT / "datasets"
SUITES = ROOT / "suites"

#: "test": train on all training images, evaluate on the test set. The other two never train on the validation part:
#: "val" evaluates on it, "test_heldout" on the test set (so that a choice made on validation images is a clean one).
EvalSplit = Literal["test", "val", "test_heldout"]


class Section(pydantic.BaseModel):
    """Base of all configuration: unknown keys are errors (an option that nothing reads is a bug), values are frozen."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class BackboneConfig(Section):
    """The pretrained model: a timm name (full tag for pretrained ones) and where its weights come from."""

    model: str
    options: dict[str, Any] = {}  #: keyword arguments of ``timm.create_model``
    weights: str | None = None  #: safetensors file beside the protocol, or an absolute path; None: random
    sha256: str | None = None  #: of that file, checked before it is read


class AdapterConfig(Section):
    """Which backbone weights training may change."""

    kind: Literal["lora", "full"] = "lora"
    rank: int = pydantic.Field(8, ge=1)
    targets: tuple[Literal["q", "k", "v"], ...] = ("k", "v")
    scale: float = pydantic.Field(1.0, gt=0)  #: W = W_start + scale * B A


class TrainConfig(Section):
    """Optimisation of one task; the same for every method. AdamW."""

    epochs: int = pydantic.Field(ge=1)
    batch: int = pydantic.Field(64, ge=1)
    lr: float = pydantic.Field(gt=0)
    head_lr: float = pydantic.Field(gt=0)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = pydantic.Field(0, ge=0)
    label_smoothing: float = pydantic.Field(0.0, ge=0, lt=1)
    temperature: float = pydantic.Field(1.0, gt=0)  #: logits are divided by it in the loss, not at test
    precision: Literal["fp32", "bf16"] = "fp32"  #: autocast of the training step; statistics are always fp32


class HeadConfig(Section):
    """``linear``: one a task, trained on its own classes, concatenated for evaluation, never merged."""

    kind: Literal["linear"] = "linear"
    init_std: float = pydantic.Field(default=0.02, ge=0)


class ProtocolConfig(Section):
    """How a family of papers trains: everything but dataset, task count, method and seeds."""

    key: str
    title: str
    about: str = ""
    backbone: BackboneConfig
    adapter: AdapterConfig
    train: TrainConfig
    head: HeadConfig = HeadConfig()
    fisher_samples: int = pydantic.Field(2048, ge=1)  #: per task, class-balanced
    eval_batch: int = pydantic.Field(250, ge=1)
    val_fraction: float = pydantic.Field(0.1, gt=0, lt=1)
    seconds_per_step: float | None = None  #: rough cost of an optimiser step, for the plan until there are records
    threads: int = pydantic.Field(1, ge=1)  #: per process; part of the identity, since it changes bits
    tuned: dict[str, dict[str, Any]] = {}  #: option values by plugin key, chosen on validation data
    per_dataset: dict[str, dict[str, Any]] = {}  #: overrides by dataset key, same shape as the protocol
    variant_of: str | None = None  #: set where a field was overridden: tables then name the change


class ImageConfig(Section):
    """What the model sees: (x / 255 - mean) / std per channel."""

    size: int = pydantic.Field(ge=1)
    channels: Literal[1, 3]
    mean: list[float]
    std: list[float]


class DatasetConfig(Section):
    """One dataset: what it is, which reader reads it, and the counts that must come out."""

    key: str
    title: str
    layout: str
    options: dict[str, Any] = {}
    classes: int = pydantic.Field(ge=2)
    train: int = pydantic.Field(ge=1)
    test: int = pydantic.Field(ge=1)
    tasks: list[int]
    image: ImageConfig
    role: Literal["stream", "pretraining"] = "stream"
    about: str = ""

    @pydantic.field_validator("tasks")
    @classmethod
    def _tasks(cls, tasks: list[int]) -> list[int]:
        if not tasks or min(tasks) < 1:
            raise ValueError("needs at least one task count of 1 or more")
        return tasks


class SuiteConfig(Section):
    """A grid: every combination of datasets, task counts, methods, starts, trainers and repeats under one protocol."""

    key: str
    about: str = ""
    protocol: str
    datasets: list[str]
    tasks: list[int] = []  #: empty: each dataset's first default
    methods: list[str]
    start: list[Literal["pretrained", "previous", "merged"]] = []  #: empty: each method's own
    trainers: list[str] = []  #: every method trained by each of these; empty: each method's own
    seeds: str = "3"  #: "3" is repeats 0, 1, 2; "0,1,7" lists them
    eval_split: EvalSplit = "test"


S = TypeVar("S", bound=Section)


def read_yaml(path: Path, model: type[S], **extra: Any) -> S:
    """A validated configuration file.

    Raises:
        UserError: not readable, not YAML, or a key that is unknown, missing, of the wrong type or out of range.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping of keys, found {type(data).__name__}")
    return check({**extra, **data}, model, str(path))


def check(data: dict[str, Any], model: type[S], where: str) -> S:
    """``data`` as ``model``.

    Raises:
        UserError: naming ``where`` and the key.
    """
    try:
        return model.model_validate(data)
    except pydantic.ValidationError as error:
        # A misspelt key is both unknown and missing: the first says more.
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown("key", key, _keys_beside(model, first["loc"]), where) from None
        message = "missing" if first["type"] == "missing" else f"{first['msg']} (found {first['input']!r})"
        raise UserError(f"{where}: {key}: {message}") from None


def _keys_beside(model: type[pydantic.BaseModel], location: tuple[int | str, ...]) -> list[str]:
    prefix: list[str] = []
    for part in location[:-1]:
        inner = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, pydantic.BaseModel)):
            break
        model = inner
        prefix.append(str(part))
    return [".".join([*prefix, name]) for name in model.model_fields]


def named_file(name: str, folders: list[Path], what: str, where: str) -> Path:
    """The YAML file of that name in the folders, or the path itself where one was given.

    Raises:
        UserError: no such name; the nearest ones are named.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(f"{where}: no such file {path}")
        return path
    known = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        raise unknown(what, name, known, where)
    return known[name]


def load_protocol(name: str, overrides: dict[str, Any] | None = None) -> ProtocolConfig:
    """A preset by name or a YAML file by path, with ``{"train.epochs": 3}``-like overrides.

    Raises:
        UserError: unknown preset or key, wrong value, backbone weights missing or with another checksum.
    """
    path = named_file(name, [PROTOCOLS], "protocol", "protocol")
    protocol = read_yaml(path, ProtocolConfig, key=path.stem)
    if overrides:
        data = protocol.model_dump()
        for key, value in overrides.items():
            _set(data, key, value, "--protocol-set")
            for of_dataset in data["per_dataset"].values():  # what is asked for by hand stands above the preset's own
                _drop(of_dataset, key)
        changed = ",".join(f"{key}={value}" for key, value in sorted(overrides.items()))
        protocol = check(
            {**data, "variant_of": protocol.key, "key": f"{protocol.key}[{changed}]"}, ProtocolConfig, "--protocol-set"
        )
    if protocol.backbone.weights is not None:
        file = weights_file(protocol)
        if not file.is_file():
            raise UserError(f"{path}: backbone.weights: no file {file}; make it with: clmerge pretrain")
        if protocol.backbone.sha256 and hashlib.sha256(file.read_bytes()).hexdigest() != protocol.backbone.sha256:
            raise UserError(
                f"{path}: backbone.sha256: {file} has another checksum; restore the file (git checkout) or, "
                "if you pre-trained anew, write its checksum into a protocol of your own"
            )
    return protocol


def weights_file(protocol: ProtocolConfig) -> Path:
    """Where the backbone's weights lie (relative names: beside the presets)."""
    return PROTOCOLS / Path(str(protocol.backbone.weights)).expanduser()


def for_dataset(protocol: ProtocolConfig, dataset: str) -> ProtocolConfig:
    """The protocol with its overrides for one dataset applied."""
    data = protocol.model_dump()
    for key, value in _flatten(protocol.per_dataset.get(dataset, {})):
        _set(data, key, value, f"protocol {protocol.key}: per_dataset.{dataset}")
    return check({**data, "per_dataset": {}}, ProtocolConfig, f"protocol {protocol.key}: per_dataset.{dataset}")


def load_dataset_config(name: str, extra: list[Path]) -> DatasetConfig:
    """A dataset by key (``datasets/`` and plugin folders) or by the path of its YAML."""
    path = named_file(name, [DATASETS, *extra], "dataset", "datasets")
    return read_yaml(path, DatasetConfig, key=path.stem)


def load_suite(name: str) -> SuiteConfig:
    """A suite by name (``suites/``) or by the path of its YAML."""
    path = named_file(name, [SUITES], "suite", "--suite")
    return read_yaml(path, SuiteConfig, key=path.stem)


def _set(data: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    *path, last = dotted.split(".")
    inner: Any = data
    for depth, part in enumerate([*path, last]):
        if not isinstance(inner, dict):
            raise UserError(f"{where}: {dotted}: {'.'.join(path[:depth])} has no keys below it")
        if part not in inner and path[:1] not in (["tuned"], ["per_dataset"]):
            raise unknown("key", dotted, [k for k, _ in _flatten(data)], where)
        if depth < len(path):
            inner = inner.setdefault(part, {})
    inner[last] = deepcopy(value)


def _drop(data: dict[str, Any], dotted: str) -> None:
    first, _, rest = dotted.partition(".")
    if rest and isinstance(data.get(first), dict):
        _drop(data[first], rest)
    if not rest or data.get(first) == {}:
        data.pop(first, None)


def _flatten(data: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in data.items():
        if isinstance(value, dict) and value:
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs
