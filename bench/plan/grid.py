"""From a suite to cells, each checked before anything runs. Torch-free, so that planning takes a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from bench.common.errors import UserError
from bench.config.files import for_dataset, load_dataset_config, load_protocol, shown_image, yaml_files
from bench.config.schema import DatasetConfig, HeadKind, ProtocolConfig, SuiteConfig
from bench.data.dataset import availability, data_digest
from bench.data.scenario import scenario_of
from bench.method import Start
from bench.model.class_rows import check_rows
from bench.model.pretrained_files import check_weights
from bench.plan.cell import Cell
from bench.plan.method_protocol import MethodProtocol, check_names, for_method
from bench.registry import Registry
from bench.registry.resolve import look_up
from bench.registry.resolved import Method
from bench.registry.spelling import parse, spell


def parse_seeds(text: str, where: str = "--seeds") -> list[int]:
    """ "3" to [0, 1, 2]; "0,1,7" and "3-12" list repeats.

    Raises:
        UserError: not a count, list or span of non-negative integers.
    """
    spans = []
    try:
        if "," not in text and "-" not in text:
            spans.append(range(int(text)))
        else:
            for part in filter(None, text.split(",")):
                low, dash, high = part.partition("-")
                spans.append(range(int(low), int(high if dash else low) + 1))
    except ValueError:
        spans = []
    most = 100_000  # more is a slip, and would fill the memory
    seeds = [seed for span in spans for seed in span] if sum(map(len, spans)) <= most else []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise UserError(
            f"{where}: {text!r} is neither a count (3), a list (0,1,7) nor a span (3-12) of distinct repeats"
        )
    return seeds


def all_datasets(data: Path, folders: list[Path]) -> tuple[list[str], dict[str, str]]:
    """Keys of the stream datasets whose data is on this machine, and of the others with the reason."""
    here, blocked = [], {}
    for file in sorted({path.stem: path for path in yaml_files("datasets", folders)}.values()):
        config = load_dataset_config(str(file), folders)
        if config.role == "stream":
            why_not = availability(config, data)
            if why_not is None:
                here.append(config.key)
            else:
                blocked[config.key] = why_not
    return here, blocked


def expand(
    suite: SuiteConfig,
    registry: Registry,
    data: Path,
    folders: list[Path],
    overrides: dict[str, Any] | None = None,
    class_order_seed: int | None = None,
    run_seed: int | None = None,
) -> tuple[list[Cell], dict[str, str]]:
    """Every cell of a suite, each checked, without duplicates; and the datasets that ``all`` left out.

    ``overrides`` stand above those of the suite.

    Raises:
        UserError: an unknown name, a task count that does not fit, a dataset that is named and not there, ...
    """
    here, blocked = all_datasets(data, folders) if "all" in suite.datasets else ([], {})
    named = [name for name in suite.datasets if name != "all"]
    repeats = [
        (repeat if class_order_seed is None else class_order_seed, repeat if run_seed is None else run_seed)
        for repeat in parse_seeds(suite.seeds)
    ]
    load = _Protocols(registry, suite, repeats, overrides or {})
    cells: dict[str, Cell] = {}
    for name in dict.fromkeys([*named, *here]):
        dataset = load_dataset_config(name, folders)
        for preset, chosen in product(suite.protocols or [dataset.protocol], suite.alternatives()):
            protocol, changes = load.of(preset, chosen)
            adapted = for_dataset(protocol, dataset.key)
            try:
                _check_stream(dataset, suite, data)
                _check_backbone(adapted, dataset)
            except UserError as error:
                if name in named:
                    raise
                blocked[name] = str(error)  # "all" is what can run here
                continue
            setting = Setting(dataset, anywhere(name), adapted, anywhere(preset), changes)
            for asked in _methods(suite, registry, setting):
                _refuse(asked.method, asked.protocol, dataset)
                digest = data_digest(dataset, data, asked.protocol.image)
                for n_tasks, seeds in product(suite.tasks or dataset.tasks[:1], repeats):
                    cell = cell_at(setting, asked, n_tasks, *seeds, suite.eval_split, digest)
                    cells.setdefault(cell.id, cell)
    if not cells:
        raise UserError("datasets: nothing to run; " + "; ".join(f"{k}: {v}" for k, v in blocked.items()))
    return list(cells.values()), blocked


@dataclass(frozen=True)
class Setting:
    """A dataset under a protocol: what the cells of all methods, task counts and repeats have in common."""

    dataset: DatasetConfig
    dataset_name: str  #: as it is asked for: a key or the path of a file
    protocol: ProtocolConfig  #: with what it says of the dataset
    protocol_name: str  #: as it is asked for
    changes: Mapping[str, Any]  #: fields of the protocol that are set by hand


def cell_at(
    setting: Setting,
    asked: MethodProtocol,
    n_tasks: int,
    class_order_seed: int,
    run_seed: int,
    eval_split: str = "test",
    data_digest: str | None = None,
) -> Cell:
    """The cell of a method in a setting, with the words that ask for it."""
    request = {
        "dataset": setting.dataset_name,
        "n_tasks": n_tasks,
        "protocol": setting.protocol_name,
        "overrides": dict(setting.changes),
        "method": asked.method.variant,
        **({"per_method": asked.entry} if asked.entry else {}),
        "class_order_seed": class_order_seed,
        "run_seed": run_seed,
        "eval_split": eval_split,
    }
    return Cell(
        setting.dataset, n_tasks, asked.protocol, asked.method, class_order_seed, run_seed, eval_split, request,
        data_digest,
    )  # fmt: skip


def _methods(suite: SuiteConfig, registry: Registry, setting: Setting) -> Iterator[MethodProtocol]:
    """Every method of a suite with what the setting's protocol says of it."""
    starts: list[Start | None] = [*suite.start] or [None]
    trainers: list[str | None] = [*suite.trainers] or [None]
    heads: list[HeadKind] = suite.heads or [setting.protocol.head.kind]
    for spelling, trainer, start, head in product(suite.methods, trainers, starts, heads):
        served = _served_by(registry, spelling, head, setting.protocol)
        yield for_method(registry, setting.protocol, setting.changes, served, start, trainer)


def _served_by(registry: Registry, spelling: str, head: HeadKind, protocol: ProtocolConfig) -> str:
    """The spelling with that head, unless the method brings one, serves every task by its own model, or would be served
    by it anyway.
    """
    asked = look_up(registry, spelling, "methods")
    if head == protocol.head.kind or asked.head is not None or asked.rule.experts:
        return spelling
    return spell(replace(parse(spelling), head=head))


@dataclass
class _Protocols:
    """The protocols of one suite, each read from its file once."""

    registry: Registry
    suite: SuiteConfig
    repeats: list[tuple[int, int]]
    overrides: Mapping[str, Any]
    _read: dict[str, ProtocolConfig] = field(default_factory=dict)

    def of(self, preset: str, chosen: Mapping[str, Any]) -> tuple[ProtocolConfig, dict[str, Any]]:
        """A preset with one of the suite's alternatives, checked against plugins and repeats; and what is changed."""
        changes = {**chosen, **self.overrides}
        key = json.dumps([preset, changes], sort_keys=True)
        if key not in self._read:
            protocol = load_protocol(preset, changes)
            check_names(self.registry, protocol)
            _refuse_tuned_on(protocol, self.suite, self.repeats)
            self._read[key] = protocol
        return self._read[key], changes


def _check_stream(dataset: DatasetConfig, suite: SuiteConfig, data: Path) -> None:
    """Whether the dataset is a stream, is there, and can be cut into so many tasks.

    Raises:
        UserError: it is not, or has not.
    """
    if dataset.role != "stream":
        raise UserError(f"datasets: {dataset.key!r} is for pre-training the backbone, not a stream")
    why_not = availability(dataset, data)
    if why_not is not None:
        raise UserError(f"dataset {dataset.key!r} is not on this machine: {why_not}")
    for n_tasks in suite.tasks:
        scenario_of(dataset).check(dataset, n_tasks)


def _check_backbone(protocol: ProtocolConfig, dataset: DatasetConfig) -> None:
    """Whether the weights can be had and the model takes what it would be shown, as far as its options tell.

    Raises:
        UserError: they cannot, or it does not.
    """
    shown, options = shown_image(protocol, dataset), protocol.backbone.options
    takes = options.get("in_chans", 3), options.get("img_size", shown.size)
    if takes != (shown.channels, shown.size):
        raise UserError(
            f"protocol {protocol.key}: its backbone takes {takes[0]} channels of {takes[1]} pixels a side, and "
            f"{dataset.key} has {shown.channels} of {shown.size}; use another protocol, such as {dataset.protocol}"
        )
    check_weights(protocol)


def _refuse_tuned_on(protocol: ProtocolConfig, suite: SuiteConfig, repeats: list[tuple[int, int]]) -> None:
    """What was chosen on some class orders is not measured on them."""
    if protocol.tuning is None or suite.eval_split == "val":
        return
    tuned_on = set(parse_seeds(protocol.tuning.repeats, f"protocol {protocol.key}: tuning.repeats"))
    both = sorted(tuned_on & {order for order, _ in repeats})
    if both:
        raise UserError(
            f"--seeds: {', '.join(map(str, both))}: protocol {protocol.key} was tuned on these class orders "
            f"({protocol.tuning.repeats}); use other repeats"
        )


def _refuse(method: Method, protocol: ProtocolConfig, dataset: DatasetConfig) -> None:
    """Settings that contradict each other, found before anything runs."""
    kind, where = protocol.head.kind, f"protocol {protocol.key}"
    scenario_of(dataset).cuts(dataset.classes, dataset.tasks[0], 0, protocol.class_order)  # a listed order fits
    if kind == "zero_shot":
        check_rows(protocol.head, dataset.classes)
    if method.rule.experts and kind not in ("linear", "zero_shot"):
        raise UserError(f"{where}: head.kind: {method.key!r} serves every task by its own model; use the linear head")
    if method.trainer.adapt and method.trainer.factors not in protocol.adapter_section.factors:
        raise UserError(
            f"{where}: adapter: {protocol.adapter} has no LoRA factor to keep fixed, as {method.key!r} does"
        )
    if protocol.train.schedule == "multistep" and not protocol.train.milestones:
        raise UserError(f"{where}: train.milestones: missing; schedule multistep lowers the rate after these epochs")


def anywhere(name: str) -> str:
    """A name as it is, a file's path made absolute: a request is read in other folders and processes too."""
    return str(Path(name).expanduser().resolve()) if name.endswith((".yaml", ".yml")) else name


def cell_of(request: dict[str, Any], registry: Registry, folders: list[Path], data: Path) -> Cell:
    """The cell that the words of a record ask for today.

    Raises:
        UserError: a plugin, a protocol or a dataset is not there any more, or not as it was.
        KeyError: the request is not one of this version's.
    """
    if "replay" in request:
        from bench.plan.replayed import replay_cell

        return replay_cell(request, registry, folders, data)
    dataset = load_dataset_config(request["dataset"], folders)
    changes = request["overrides"]
    adapted = for_dataset(load_protocol(request["protocol"], changes), dataset.key)
    asked = for_method(registry, adapted, changes, request["method"], entry=request.get("per_method"))
    seeds = request["class_order_seed"], request["run_seed"]
    digest = data_digest(dataset, data, asked.protocol.image)
    return Cell(
        dataset, request["n_tasks"], asked.protocol, asked.method, *seeds, request["eval_split"], request, digest
    )
