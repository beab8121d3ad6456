"""A cell: its place in the grid, its name, and the keys of its trainings. Torch-free, so that plans are quick."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from bench.common.cache import key_of
from bench.common.errors import UserError
from bench.config.files import protocol_of
from bench.config.schema import DatasetConfig, ProtocolConfig, Section, check
from bench.data.dataset import data_changed, prepared_key
from bench.data.scenario import Cut, Scenario, scenario_of
from bench.method import Plugin, Trainer
from bench.method.asking import Need
from bench.method.chain import begins
from bench.model.class_rows import rows_digest
from bench.model.pretrained_files import weights_digest
from bench.plan.hashed_code import HEAD_CODE, MERGING_CODE, TRAINING_CODE
from bench.registry import Registry
from bench.registry.code_hash import code_of_class, code_of_modules
from bench.registry.resolved import Method
from bench.statistics import STATISTICS, code_files

FORMAT = 2  #: of names and keys: raised where the same configuration comes to mean something else


#: of a protocol: words, and what is applied to the other fields before a cell is made
NO_IDENTITY = {
    "key", "title", "about", "base", "inferred", "tuned", "per_dataset", "per_method", "tuning", "variant_of",
    "seconds_per_step",
}  # fmt: skip


#: where a file of weights lies and what it should hold: what it holds is hashed instead
FILES = {"backbone": {"weights", "sha256"}, "head": {"text"}}

TRAINING_FIELDS = {"backbone", "adapter", "image", "augment", "train", "threads"}


def _changed(section: Section, include: Any = None, exclude: Any = None) -> dict[str, Any]:
    """The fields that are not at their default, so that a field more with a default changes no name and no key."""
    return section.model_dump(mode="json", include=include, exclude=exclude, exclude_defaults=True)


def _or_empty(digest: Callable[[], str | None]) -> str:
    """The digest, "" where the file is not on this machine."""
    with suppress(UserError):
        return digest() or ""
    return ""


@dataclass(frozen=True)
class Cell:
    """One run of the grid: dataset x T x method x protocol x class_order_seed x run_seed."""

    trains: ClassVar[bool] = True  #: whether its task models are trained here
    merging_code: ClassVar[tuple[str, ...]] = MERGING_CODE  #: files of the harness, beside those of statistics

    dataset: DatasetConfig
    n_tasks: int
    protocol: ProtocolConfig  #: with this dataset's and this method's overrides applied
    method: Method
    class_order_seed: int
    run_seed: int
    eval_split: str
    request: dict[str, Any] = field(compare=False)  #: the words that asked for this cell (JSON-able)
    data_digest: str | None = field(default=None, compare=False)  #: of the prepared arrays; None: not prepared yet
    keep_weights: bool = field(default=False, compare=False)  #: write every task's weights beside the record
    keep_trainings: bool = field(default=False, compare=False)  #: another cell of the plan needs all of them too

    @cached_property
    def id(self) -> str:
        """Readable, and ending in a hash of everything that defines the cell (but not of any code).

        Of the configuration what is at its default is left out: a field more, with a default, changes no name.
        """
        identity = key_of(
            FORMAT,
            prepared_key(self.dataset, self.protocol.image),
            self.n_tasks,
            _changed(self.protocol, exclude={**dict.fromkeys(NO_IDENTITY | self.protocol.unread, True), **FILES}),
            self.files_digest,
            self.method.identity(),
            self.class_order_seed,
            self.run_seed,
            self.eval_split,
            *self.scenario.identity,
            *self.protocol.head.redefined,
        )
        method = "".join(c if c.isalnum() or c in "_-" else "." for c in self.method.key)[:48]
        split = "" if self.eval_split == "test" else f"-{self.eval_split}"
        protocol = self.protocol.variant_of or self.protocol.key
        seeds = f"c{self.class_order_seed}-r{self.run_seed}"
        stream = f"{self.dataset.key}-T{self.n_tasks}{self.scenario.tag}"
        return f"{stream}-{protocol}{split}-{method}-{seeds}-{identity[:10]}"

    def resolved(self) -> dict[str, Any]:
        """Everything that makes this cell, with no name left to look up but those of plugins (JSON-able)."""
        return {
            "id": self.id,
            "dataset": self.dataset.model_dump(mode="json"),
            "n_tasks": self.n_tasks,
            "protocol": self.protocol.model_dump(mode="json"),
            "method": self.method.as_json(),
            "class_order_seed": self.class_order_seed,
            "run_seed": self.run_seed,
            "eval_split": self.eval_split,
            "keep_weights": self.keep_weights,
        }

    def as_json(self) -> dict[str, Any]:
        """The cell for another process, see :meth:`from_json`."""
        more = ("request", "data_digest", "keep_trainings")
        return self.resolved() | {name: getattr(self, name) for name in more}

    @classmethod
    def from_json(cls, told: Mapping[str, Any], registry: Registry) -> Self:
        """The cell of :meth:`as_json`: nothing that was asked for is read a second time.

        Raises:
            UserError: a plugin, or a file that the cell's name stands for, is not what it was when it was planned.
        """
        cell = cls(**cls._fields(told, registry))
        if cell.id != told["id"]:
            raise UserError(
                f"cell {told['id']}: a plugin or a file of weights has changed since it was planned; start again"
            )
        return cell

    @classmethod
    def _fields(cls, told: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
        """The arguments of the class."""
        where = f"cell {told['id']}"
        same = (
            "n_tasks", "class_order_seed", "run_seed", "eval_split", "keep_weights", "request", "data_digest",
            "keep_trainings",
        )  # fmt: skip
        return {name: told[name] for name in same} | {
            "dataset": check(told["dataset"], DatasetConfig, f"{where}: dataset"),
            "protocol": protocol_of(told["protocol"], f"{where}: protocol"),
            "method": Method.from_json(told["method"], registry, where),
        }

    @cached_property
    def files_digest(self) -> dict[str, str]:
        """SHA-256 of the files that the model is made from, as they are now: of the backbone's weights and, for a
        zero-shot head, of the classes' text rows. Weights that the hub still has to send are named by their tag alone;
        a file that is not on this machine has "", so no record is taken for one of this cell's.
        """
        digests: dict[str, str] = {}
        if self.protocol.backbone.weights is not None:
            digests["backbone"] = _or_empty(lambda: weights_digest(self.protocol))
        if self.protocol.head.kind == "zero_shot":
            digests["text"] = _or_empty(lambda: rows_digest(self.protocol.head))
        return digests

    def changed_since(self, record: Mapping[str, Any], data: Path) -> str:
        """What, of the files that are not in the name, is known to be other than the record was made of; "" nothing.

        Args:
            record: with this cell's name.
            data: the folder of datasets; where a dataset is not there, its images cannot have changed.
        """
        digest = (record.get("dataset") or {}).get("digest")
        if self.data_digest is not None and digest != self.data_digest:
            return "the images or labels of its dataset have changed since"
        if self.data_digest is None and data_changed(self.dataset, data, self.protocol.image):
            return "the files of its dataset have changed since they were prepared"
        return ""

    @property
    def scenario(self) -> Scenario:
        """What kind of stream the dataset is cut into."""
        return scenario_of(self.dataset)

    @cached_property
    def cuts(self) -> list[Cut]:
        """The stream's tasks, where the class order cuts them."""
        return self.scenario.cuts(self.dataset.classes, self.n_tasks, self.class_order_seed, self.protocol.class_order)

    @property
    def task_classes(self) -> list[list[int]]:
        """The labels of each task where they are listed one by one; here the class order cuts them."""
        return []

    def protocol_told(self) -> dict[str, Any]:
        """What the record says of the protocol."""
        return self.protocol.model_dump(mode="json")

    def coordinates(self) -> dict[str, Any]:
        """The cell's place in the grid, as records and tables have it."""
        return {
            "dataset": self.dataset.key,
            "n_tasks": self.n_tasks,
            "protocol": self.protocol.key,
            "method": self.method.key,
            "variant": self.method.variant,
            "start": self.method.start,
            "class_order_seed": self.class_order_seed,
            "run_seed": self.run_seed,
            "eval_split": self.eval_split,
            **({"scenario": self.scenario.key} if self.scenario.identity else {}),
        }

    def _statistics_code(self) -> list[str]:
        """Files of the statistics that trainer and rule read: those that they declare, all where they declare nothing.

        So one statistic more, or another's code edited, makes no record stale that has nothing to do with it.
        """
        keys: set[str] = set()
        for plugin in self.method.build():
            declares = type(plugin).needs is not Plugin.needs
            silent = type(plugin).learnt is Trainer.learnt if isinstance(plugin, Trainer) else plugin.data == "none"
            if declares:
                keys |= {need.key for need in map(Need.parse, plugin.needs)} & set(STATISTICS)
            elif not silent:
                keys |= set(STATISTICS)
        return sorted({file for key in keys for file in code_files(key)})

    def code(self) -> dict[str, str]:
        """Hashes of the code that training, that merging and evaluation, and that fitting a head run through."""
        adapter = f"model/adapters/{self.protocol.adapter}.py"
        head = HEAD_CODE.get(self.protocol.head.kind)  # apart from the others: a training does not depend on it
        return {
            "train": key_of(code_of_modules(*TRAINING_CODE, adapter), code_of_class(self.method.trainer))[:16],
            "method": key_of(
                code_of_modules(*self.merging_code, *self._statistics_code()), code_of_class(self.method.rule)
            )[:16],
            **({"head": key_of(code_of_modules(head))[:16]} if head else {}),
        }

    @cached_property
    def trained_tasks(self) -> list[int]:
        """The t at which something is trained: all, or only the last for a trainer that sees all data."""
        return [self.n_tasks] if self.method.trainer.data == "seen" else list(range(1, self.n_tasks + 1))

    @cached_property
    def train_keys(self) -> dict[int, str]:
        """For each trained t, the key of its artifact: a hash of everything the training is a function of.

        Where a training starts from what was made before (previous or merged weights, a trainer with memory), the
        key of that stands for it, so keys are known before anything is computed.
        """
        code, protocol, options = self.code(), self.protocol, self.protocol.adapter_section
        trainer = self.method.identity()["trainer"]
        # all kinds but this one train the same heads
        zero_shot = protocol.head.kind == "zero_shot"
        base = [
            FORMAT,
            prepared_key(self.dataset, protocol.image),
            self.data_digest,
            _changed(protocol, include=TRAINING_FIELDS, exclude={"backbone": FILES["backbone"]}),
            _changed(options) if type(options).model_fields else None,
            None if zero_shot else _changed(protocol.head, include={"init_std"}),
            weights_digest(protocol),
            rows_digest(protocol.head) if zero_shot else None,
            trainer,
            code["train"],
            self.run_seed,
            ["val", protocol.val_fraction] if self.held_out else ["test", None],
            version("torch"),
        ]
        served = parent = "pretrained"
        keys: dict[int, str] = {}
        # What a trainer remembers comes from the tasks before, by way of their statistics.
        learner, joint = self.method.trainer, self.method.trainer.data == "seen"
        chooses = learner.directions is not Trainer.directions  # from statistics, at the first task too
        memory = [protocol.fisher_samples, code["method"]] if learner.states() or chooses else None
        for t in self.trained_tasks:
            begun = begins(self.method.start, "pretrained", parent, served)
            keys[t] = key_of(
                "train",
                base,
                *self.scenario.learnt_from(self.cuts[:t], joint, parent),
                begun,
                [parent, *memory] if memory and (t > 1 or chooses) else None,
                # Old heads come from the training before, a teacher from all that was served before.
                *([["heads", parent]] if learner.heads == "seen" and t > 1 else []),
                *([["served", served]] if learner.reads_served and t > 1 else []),
                *(["heads only"] if learner.adapt and not learner.adapts(t) else []),
            )
            parent = keys[t]
            rule = self.method.identity()["rule"]
            served = key_of("served", served, parent, rule, code["method"], protocol.fisher_samples)
        return keys

    @property
    def held_out(self) -> bool:
        """Whether the validation part is kept out of training."""
        return self.eval_split != "test"

    @property
    def chain_is_shared(self) -> bool:
        """Whether other cells can use this cell's trainings: other rules', since they neither start from what this rule
        served nor read it, or those of this rule under other heads, if the plan has any.
        """
        of_no_rule = self.method.start != "merged" and not self.method.trainer.reads_served
        return of_no_rule or self.keep_trainings

    def opt_steps(self) -> int:
        """Optimiser steps of all trainings, estimated from the dataset's counts."""
        images = self.dataset.train * (1 - self.protocol.val_fraction if self.held_out else 1.0)
        per_task = images if self.method.trainer.data == "seen" else images / self.n_tasks
        train = self.protocol.train
        return len(self.trained_tasks) * train.epochs * train.passes * math.ceil(per_task / train.batch)
