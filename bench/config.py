"""Typed configuration: protocols, datasets and suites, one YAML each; a mistake names the file and the key."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
import yaml

from bench.code import ROOT
from bench.dotted import check_key, drop, flat, key_at, keys_of, merged, put
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
    pretrained: bool = False  #: timm's own weights of that tag, from the hub's cache; not together with ``weights``
    weights: str | None = None  #: safetensors file beside the protocol, an absolute path, or a folder of such files
    sha256: str | None = None  #: of that file, checked before it is read


class LoRAConfig(Section):
    """Low-rank adapters on projections of every attention block."""

    rank: int = pydantic.Field(default=8, ge=1)
    targets: tuple[Literal["q", "k", "v"], ...] = ("k", "v")
    scale: float = pydantic.Field(default=1.0, gt=0)  #: W = W_start + scale * B A


class ImageConfig(Section):
    """What the backbone is shown: resized, cut from the centre, then (x / 255 - mean) / std per channel."""

    size: int = pydantic.Field(ge=1)  #: side of the model's input
    resize: int | None = pydantic.Field(default=None, ge=1)  #: before the centre crop; None: ``size``, no crop
    mode: Literal["shorter", "squash"] = "shorter"  #: which side becomes ``resize``: the shorter one, or both
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    channels: Literal[1, 3] = 3
    mean: list[float]
    std: list[float]

    @property
    def resized(self) -> int:
        """The side before the centre crop."""
        return self.resize or self.size


class AugmentConfig(Section):
    """What training does to images, drawn anew for every image; nothing by default."""

    auto: Literal["imagenet", "cifar10", "svhn"] | None = None  #: AutoAugment (arXiv:1805.09501) policy
    crop_scale: tuple[float, float] | None = None  #: RandomResizedCrop: share of the area
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    flip: bool = False  #: left to right, every second image


class TrainConfig(Section):
    """Optimisation of one task; the same for every method. AdamW."""

    epochs: int = pydantic.Field(ge=1)
    passes: int = pydantic.Field(default=1, ge=1)  #: through the images in one epoch
    batch: int = pydantic.Field(default=64, ge=1)
    lr: float = pydantic.Field(gt=0)
    head_lr: float = pydantic.Field(gt=0)
    weight_decay: float = pydantic.Field(default=0.0, ge=0)
    schedule: Literal["constant", "cosine", "multistep"] = "cosine"
    milestones: tuple[int, ...] = ()  #: multistep: epochs after which the rate falls
    gamma: float = pydantic.Field(default=0.1, gt=0, le=1)  #: multistep: by this factor
    warmup_steps: int | Literal["auto"] = 0  #: linear; auto: a tenth of all steps
    clip: float | None = pydantic.Field(default=None, gt=0)  #: largest norm of all gradients together
    label_smoothing: float = pydantic.Field(default=0.0, ge=0, lt=1)
    temperature: float = pydantic.Field(default=1.0, gt=0)  #: logits are divided by it in the loss, not at test
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  #: autocast of the training step; statistics are always fp32

    @pydantic.field_validator("warmup_steps")
    @classmethod
    def _warmup(cls, steps: int | str) -> int | str:
        if isinstance(steps, int) and steps < 0:
            raise ValueError("needs 0 or more steps, or auto")
        return steps


HeadKind = Literal["linear", "zero_shot", "ncm", "ridge", "refit"]


class HeadConfig(Section):
    """What classifies features, see heads.py. ``linear`` is trained with its task and served as trained; ``refit``,
    ``ncm`` and ``ridge`` train the same heads and fit others to the served backbone; ``zero_shot`` is never trained.
    """

    kind: HeadKind = "linear"
    init_std: float = pydantic.Field(default=0.02, ge=0)
    text: str | None = None  #: zero_shot: safetensors file of class rows, beside the protocol or an absolute path
    projection: int = pydantic.Field(default=2000, ge=1)  #: ridge: random features
    ridge: float | None = pydantic.Field(default=None, gt=0)  #: its penalty; None: chosen on a fifth of each task
    refit_epochs: int = pydantic.Field(default=5, ge=1)  #: refit: passes over the current task's features


class TuningConfig(Section):
    """How values of a protocol were chosen: the same number of trials for every method."""

    trials: int = pydantic.Field(ge=1)
    repeats: str  #: class orders that were tuned on
    datasets: list[str]
    tasks: list[int]


class ProtocolConfig(Section):
    """How a family of papers trains: everything but dataset, task count, method and seeds."""

    key: str
    title: str
    about: str = ""
    base: str | None = None  #: a preset (or file) that this one changes; only what differs is written
    inferred: list[str] = []  #: dotted fields that the paper does not state
    backbone: BackboneConfig
    adapter: Literal["lora", "full"] = "lora"  #: which backbone weights training may change
    lora: LoRAConfig = LoRAConfig()
    image: ImageConfig | None = None  #: what the backbone is shown; None: the dataset's images as they are
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig
    head: HeadConfig = HeadConfig()
    class_order: Literal["mt19937", "pcg64", "identity"] | list[int] = "mt19937"  #: what class_order_seed seeds
    fisher_samples: int = pydantic.Field(default=2048, ge=1)  #: per task, class-balanced
    eval_batch: int = pydantic.Field(default=250, ge=1)
    val_fraction: float = pydantic.Field(default=0.1, gt=0, lt=1)
    seconds_per_step: float | None = None  #: rough cost of an optimiser step, for the plan until there are records
    threads: int = pydantic.Field(default=1, ge=1)  #: per process; part of the identity, since it changes bits
    tuned: dict[str, dict[str, Any]] = {}  #: option values by plugin key, chosen on validation data
    per_dataset: dict[str, dict[str, Any]] = {}  #: overrides by dataset key, same shape as the protocol
    per_method: dict[str, dict[str, Any]] = {}  #: overrides by method key; ``options`` are its plugins'
    tuning: TuningConfig | None = None  #: set where ``clmerge tune`` wrote the file
    variant_of: str | None = None  #: set where a field was overridden: tables then name the change


class PixelsConfig(Section):
    """A dataset's images. Where they all have one size it is ``size``, otherwise the protocol says how they are cut."""

    size: int | None = pydantic.Field(default=None, ge=1)
    channels: Literal[1, 3]
    mean: list[float] = []  #: for backbones that were trained on this dataset's own statistics
    std: list[float] = []


class FileConfig(Section):
    """A file that a dataset is made from, as its publisher has it."""

    name: str  #: in the data folder's ``downloads``
    url: str | None = None  #: None: it cannot be fetched by a program; ``DatasetConfig.get`` says how it is had
    md5: str | None = None  #: as published or seen in public code
    sha256: str | None = None
    bytes: int | None = None
    extract: bool = True  #: an archive; False: a list or table that is read where it lies
    folder: str = ""  #: below the data folder, where an archive is extracted to that brings no folder of the dataset's


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
    protocol: str = "embedded"  #: that it is run under where none is asked for
    per_class: dict[Literal["train", "test"], int | tuple[int, int]] = {}  #: images a class, or least and most
    duplicates: int | None = pydantic.Field(default=0, ge=0)  #: test images that are in train too; None: unknown
    image: PixelsConfig
    files: list[FileConfig] = []  #: what ``clmerge data get`` fetches
    get: str = ""  #: how to get what cannot be fetched
    role: Literal["stream", "pretraining"] = "stream"
    about: str = ""

    @pydantic.field_validator("tasks")
    @classmethod
    def _tasks(cls, tasks: list[int]) -> list[int]:
        if not tasks or min(tasks) < 1:
            raise ValueError("needs at least one task count of 1 or more")
        return tasks


class SuiteConfig(Section):
    """A grid: every combination of datasets, task counts, methods, starts, trainers and repeats, under one protocol or
    several, each with every combination of the values that ``protocol_set`` lists.
    """

    key: str
    about: str = ""
    protocol: str | list[str] = []  #: empty: each dataset's own
    protocol_set: dict[str, list[Any]] = {}  #: {"lora.rank": [4, 10, 16]}: alternatives for a field of the protocol
    datasets: list[str]
    tasks: list[int] = []  #: empty: each dataset's first default
    methods: list[str]
    start: list[Literal["pretrained", "previous", "merged"]] = []  #: empty: each method's own
    trainers: list[str] = []  #: every method trained by each of these; empty: each method's own
    seeds: str = "3"  #: "3" is repeats 0, 1, 2; "0,1,7" lists them
    eval_split: EvalSplit = "test"

    @property
    def protocols(self) -> list[str]:
        """The presets or files, without their alternatives; none: each dataset's own."""
        return [self.protocol] if isinstance(self.protocol, str) else self.protocol

    def alternatives(self) -> list[dict[str, Any]]:
        """Every combination of what ``protocol_set`` lists, as overrides of a protocol."""
        return [dict(zip(self.protocol_set, chosen, strict=True)) for chosen in product(*self.protocol_set.values())]


S = TypeVar("S", bound=Section)


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
        if first["type"] == "extra_forbidden":
            *path, _ = key = [str(part) for part in first["loc"]]
            beside = [k for k in keys_of(model) if k.split(".")[:-1] == path]
            raise unknown("key", ".".join(key), beside, where) from None
        key_of_first = key_at(model, first["loc"])
        # Of a field that may be one of several types there is an error for each of them.
        told = list(dict.fromkeys(e["msg"] for e in error.errors() if key_at(model, e["loc"]) == key_of_first))
        message = "missing" if first["type"] == "missing" else f"{', or: '.join(told)} (found {first['input']!r})"
        raise UserError(f"{where}: {key_of_first}: {message}") from None


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


#: what a protocol says of itself: not inherited, no matter of a dataset or method, and not set by hand
OF_ITSELF = ("key", "base", "inferred", "tuning", "variant_of")


def load_protocol(name: str, overrides: dict[str, Any] | None = None) -> ProtocolConfig:
    """A preset by name or a YAML file by path, over its ``base``, with ``{"train.epochs": 3}``-like overrides.

    Overrides stand above ``per_dataset`` and ``per_method``. The key names those that change something, so that equal
    protocols have equal keys.

    Raises:
        UserError: unknown preset or key, wrong value, bases in a circle.
    """
    path, where = named_file(name, [PROTOCOLS], "protocol", "protocol"), "--protocol-set"
    data = _inherited(path, [])
    plain = check(data, ProtocolConfig, str(path))
    if not overrides:
        return plain
    for key in overrides:
        check_key(ProtocolConfig, key, where)
        if key in OF_ITSELF:
            raise UserError(f"{where}: {key}: write a protocol file of your own (base: {name}) to change it")
    told = [
        f"{key}={value}"
        for key, value in sorted(overrides.items())
        if check(_overridden(data, {key: value}), ProtocolConfig, where) != plain
    ]
    data = _overridden(data, overrides)
    protocol = check(data, ProtocolConfig, where)
    _check_entries(data, where)
    for key in overrides:
        if protocol.adapter == "full" and key.partition(".")[0] == "lora":
            raise UserError(f"{where}: {key}: adapter is full, so nothing reads it; leave it out")
    return protocol.model_copy(
        update={"variant_of": plain.key, "key": f"{plain.key}[{','.join(told)}]"} if told else {}
    )


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
        file = named_file(str(path.parent / base) if is_file else base, [PROTOCOLS], "protocol", f"{path}: base")
        if file.resolve() in chain:
            raise UserError(f"{path}: base: {' > '.join(p.stem for p in [*chain, file])} is a circle")
        inherited = _inherited(file, chain)
        own = {"title", "about", "key", "base", "tuning"}
        data = merged({key: value for key, value in inherited.items() if key not in own}, data)
    data = {"key": path.stem, **data}
    protocol = check(data, ProtocolConfig, str(path))
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
    """Where the backbone's weights lie (relative names: beside the presets)."""
    return PROTOCOLS / Path(str(protocol.backbone.weights)).expanduser()


def for_dataset(protocol: ProtocolConfig, dataset: str) -> ProtocolConfig:
    """The protocol with its overrides for one dataset applied."""
    data = {**merged(protocol.model_dump(), protocol.per_dataset.get(dataset, {})), "per_dataset": {}}
    return check(data, ProtocolConfig, f"protocol {protocol.key}: per_dataset.{dataset}")


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
    """A dataset by key (``datasets/`` and plugin folders) or by the path of its YAML."""
    path = named_file(name, [DATASETS, *extra], "dataset", "datasets")
    return read_yaml(path, DatasetConfig, key=path.stem)


def load_suite(name: str) -> SuiteConfig:
    """A suite by name (``suites/``) or by the path of its YAML."""
    path = named_file(name, [SUITES], "suite", "--suite")
    return read_yaml(path, SuiteConfig, key=path.stem)
