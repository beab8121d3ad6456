"""Typed configuration: protocols, datasets and suites, one YAML each; a mistake names the file and the key."""

from __future__ import annotations

import re
from itertools import product
from typing import Any, ClassVar, Literal, TypeVar

import pydantic

from bench.common.errors import UserError, unknown
from bench.config.dotted import key_at, keys_of

#: "test": train on all training images, evaluate on the test set. The other two never train on the validation part:
#: "val" evaluates on it, "test_heldout" on the test set (so that a choice made on validation images is a clean one).
EvalSplit = Literal["test", "val", "test_heldout"]
ScenarioKind = Literal["class_incremental", "domain_incremental"]  #: see data/scenario.py


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


AdapterKind = Literal["lora", "oft", "full", "frozen"]  #: each a file of model/adapters/
FULL: AdapterKind = "full"  #: the one under which any weight may change


class AdapterConfig(Section):
    """Options of a kind of adapter. A kind that has any brings a subclass, which a protocol holds under its name."""

    #: what a trainer may train of it: "AB" all, "B" only the second of two factors
    factors: ClassVar[tuple[str, ...]] = ("AB",)


class SelectedConfig(AdapterConfig):
    """Options of adapters that sit on projections of every attention block, or on the modules that a pattern names."""

    targets: tuple[Literal["q", "k", "v"], ...] = pydantic.Field(default=("k", "v"), min_length=1)
    #: instead of ``targets``: a regular expression of whole names of Linear and Conv2d modules
    modules: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> SelectedConfig:
        if self.modules is not None and self.targets != type(self).model_fields["targets"].default:
            raise ValueError("give either targets or modules")
        return self

    @pydantic.field_validator("modules")
    @classmethod
    def _pattern(cls, modules: str | None) -> str | None:
        try:
            re.compile(modules or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return modules


class LoRAConfig(SelectedConfig):
    """Low-rank adapters."""

    factors: ClassVar[tuple[str, ...]] = ("AB", "B")

    rank: int = pydantic.Field(default=8, ge=1)
    scale: float = pydantic.Field(default=1.0, gt=0)  #: W = W_start + scale * B A


class OFTConfig(SelectedConfig):
    """Orthogonal adapters: a rotation of every block of inputs."""

    block: int = pydantic.Field(default=32, ge=2)  #: inputs that are rotated together; divides all of a layer's


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
    temperature: float = pydantic.Field(default=1.0, gt=0)  #: divides logits in the loss and for rules, not at test
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  #: autocast of the training step; statistics are always fp32

    @pydantic.field_validator("warmup_steps")
    @classmethod
    def _warmup(cls, steps: int | str) -> int | str:
        if isinstance(steps, int) and steps < 0:
            raise ValueError("needs 0 or more steps, or auto")
        return steps


HeadKind = Literal["linear", "zero_shot", "refit", "align", "ncm", "ncm_both", "lda", "ridge"]


class HeadConfig(Section):
    """What classifies features, see run/classifiers/. ``linear`` is trained with its task and served as trained,
    ``zero_shot`` is never trained; the others train the same heads as ``linear`` and fit their own to the served
    backbone.
    """

    #: which fields a kind reads beside ``init_std``; a method's spelling may set them
    options: ClassVar[dict[HeadKind, tuple[str, ...]]] = {
        "zero_shot": ("text",),
        "refit": ("refit_epochs",),
        "align": ("align_epochs", "align_samples", "align_lr", "align_temperature"),
        "lda": ("shrinkage",),
        "ridge": ("projection", "ridge"),
    }

    kind: HeadKind = "linear"
    init_std: float = pydantic.Field(default=0.02, ge=0)
    text: str | None = None  #: zero_shot: safetensors file of class rows, beside the protocol or an absolute path
    projection: int = pydantic.Field(default=10_000, ge=1)  #: ridge: random features
    ridge: float | None = pydantic.Field(default=None, gt=0)  #: its penalty; None: chosen on a fifth of each task
    refit_epochs: int = pydantic.Field(default=5, ge=1)  #: refit: passes over the current task's features
    align_epochs: int = pydantic.Field(default=5, ge=1)  #: align: passes over samples of all classes seen
    align_samples: int = pydantic.Field(default=256, ge=1)  #: of each class in an epoch, and of a batch
    align_lr: float = pydantic.Field(default=0.01, gt=0)  #: of its SGD
    align_temperature: float = pydantic.Field(default=0.1, gt=0)  #: of its logits, after they are normalised
    shrinkage: float = pydantic.Field(default=1e-4, gt=0, le=1)  #: lda: share of the identity in the covariance

    @property
    def unread(self) -> set[str]:
        """Fields that are other kinds' options."""
        return {name for names in self.options.values() for name in names} - set(self.options.get(self.kind, ()))

    @property
    def redefined(self) -> list[str]:
        """For a cell's name, which leaves defaults out: those that were others when older records were made."""
        default = type(self).model_fields["projection"].default
        return [f"projection {default}"] if self.kind == "ridge" and self.projection == default else []


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
    adapter: AdapterKind = "lora"  #: which backbone weights training may change, and how
    lora: LoRAConfig = LoRAConfig()
    oft: OFTConfig = OFTConfig()
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

    @property
    def adapter_section(self) -> AdapterConfig:
        """The options of the adapter in use."""
        return getattr(self, self.adapter, AdapterConfig())

    @property
    def unread(self) -> set[str]:
        """Fields that nothing reads: the options of adapters that are not in use."""
        sections = {name for name in type(self).model_fields if isinstance(getattr(self, name), AdapterConfig)}
        return sections - {self.adapter}


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
    scenario: ScenarioKind = "class_incremental"  #: what the tasks of its stream are
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

    @pydantic.field_validator("scenario")
    @classmethod
    def _one_count(cls, scenario: str, others: pydantic.ValidationInfo) -> str:
        if scenario == "domain_incremental" and len(others.data.get("tasks", [0])) != 1:
            raise ValueError("domain_incremental needs one number under tasks: that of the domains")
        return scenario


class SuiteConfig(Section):
    """A grid: every combination of datasets, task counts, methods, starts, trainers, heads and repeats, under one
    protocol or several, each with every combination of the values that ``protocol_set`` lists.
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
    heads: list[HeadKind] = []  #: every method that brings none served by each of these; empty: the protocol's
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
