"""What kind of stream a dataset is cut into: its tasks, and which heads answer at test. Torch-free: plans ask too.

A kind is one class here; the rest of the program asks it and never its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig
from bench.data.class_order import boundaries, class_order

if TYPE_CHECKING:
    import numpy as np

Task = TypeVar("Task")
Head = TypeVar("Head")


@dataclass(frozen=True)
class Cut:
    """One task, before any image is looked at."""

    t: int  #: 1 for the first
    classes: tuple[int, ...]  #: the dataset's labels, in head column order
    columns: range  #: this task's columns among all classes of the stream
    domain: int | None = None  #: the dataset's number of it, where only its images belong to the task

    def images(self, columns: np.ndarray, domains: np.ndarray | None) -> np.ndarray:
        """(N,) bool: whose class, and where it matters whose domain, is the task's."""
        import numpy as np

        of_class: np.ndarray = np.isin(columns, self.columns)
        return of_class if self.domain is None else of_class & (domains == self.domain)


class Scenario(ABC):
    """How a stream is cut, where a head begins, which heads are open at test, and what names a task's random draws."""

    key: ClassVar[str]
    tag: ClassVar[str]  #: in a cell's name
    orders: ClassVar[str]  #: what class_order_seed orders: "classes" or "domains"
    listed_as: ClassVar[str]  #: under which key ``replay.yaml`` lists the tasks
    shared_head: ClassVar[bool]  #: one head over the same classes for all tasks, instead of a head a task

    @abstractmethod
    def check(self, dataset: DatasetConfig, n_tasks: int) -> None:
        """Whether the dataset can be cut so.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def check_domains(self, dataset: str, names: Sequence[str], n_tasks: int) -> None:
        """Whether the domains that the data has (none: no image is known the domain of) can be cut so.

        Raises:
            UserError: they cannot.
        """

    @abstractmethod
    def cuts(self, classes: int, n_tasks: int, seed: int, kind: str | Sequence[int] = "mt19937") -> list[Cut]:
        """The tasks in the order in which they arrive; ``seed`` and ``kind`` as for :func:`class_order`."""

    @abstractmethod
    def content(self, dataset: str, cut: Cut) -> str:
        """What a task's random draws are named after: what it holds, not its place in the stream."""

    @abstractmethod
    def by_head(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Tasks that are trained together, a group a head. A head has the columns of its group's first task."""

    @abstractmethod
    def goes_on_from(self, heads: Sequence[Head]) -> Head | None:
        """The head that training begins with, given those of earlier tasks; None: with a fresh one."""

    @abstractmethod
    def open_heads(self, heads: Sequence[Head]) -> Sequence[Head]:
        """Of the heads after tasks 1..t those that answer at test, side by side in column order."""

    @abstractmethod
    def learnt_from(self, cuts: Sequence[Cut], joint: bool, parent: str) -> list[Any]:
        """What, of tasks 1..t, the training of task t is a function of, for its key.

        Args:
            cuts: of tasks 1..t.
            joint: whether all of them are trained on.
            parent: the key of task t-1's training.
        """

    @abstractmethod
    def listing(self, cuts: Sequence[Cut]) -> list[Any]:
        """The tasks as ``replay.yaml`` lists them under ``listed_as``."""

    @property
    def identity(self) -> list[str]:
        """What a cell's name is hashed from; nothing for the default, so that older names stay."""
        return [] if self.key == DEFAULT else [self.key]


class ClassIncremental(Scenario):
    """Tasks have classes of their own and a head each; the heads of all tasks seen are open at test."""

    key = "class_incremental"
    tag = ""
    orders = "classes"
    listed_as = "tasks"
    shared_head = False

    def check(self, dataset: DatasetConfig, n_tasks: int) -> None:
        """There is a class for every task."""
        if not 1 <= n_tasks <= dataset.classes:
            raise UserError(
                f"tasks: {n_tasks} tasks do not fit {dataset.key!r}, which has {dataset.classes} classes; "
                f"use 1 to {dataset.classes}"
            )

    def check_domains(self, dataset: str, names: Sequence[str], n_tasks: int) -> None:
        """They do not matter."""

    def cuts(self, classes: int, n_tasks: int, seed: int, kind: str | Sequence[int] = "mt19937") -> list[Cut]:
        """The class order, cut evenly."""
        order = class_order(classes, seed, kind)
        return [Cut(t, tuple(order[c] for c in own), own) for t, own in enumerate(boundaries(classes, n_tasks), 1)]

    def content(self, dataset: str, cut: Cut) -> str:
        """Dataset and classes."""
        return f"{dataset}:{','.join(map(str, cut.classes))}"

    def by_head(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """Each for itself."""
        return [[task] for task in tasks]

    def goes_on_from(self, heads: Sequence[Head]) -> Head | None:
        """A fresh one."""
        return None

    def open_heads(self, heads: Sequence[Head]) -> Sequence[Head]:
        """All."""
        return heads

    def learnt_from(self, cuts: Sequence[Cut], joint: bool, parent: str) -> list[Any]:
        """The classes; a joint training's heads have the tasks' borders too."""
        trained = cuts if joint else cuts[-1:]
        return [[c for cut in trained for c in cut.classes], [cut.columns.stop for cut in cuts] if joint else None]

    def listing(self, cuts: Sequence[Cut]) -> list[Any]:
        """The labels of each task."""
        return [list(cut.classes) for cut in cuts]


def listed(task_classes: Sequence[Sequence[int]]) -> list[Cut]:
    """Class-incremental tasks whose labels are listed one by one; some classes may be left out."""
    edges = pairwise([0, *accumulate(map(len, task_classes))])
    pairs = enumerate(zip(task_classes, edges, strict=True), 1)
    return [Cut(t, tuple(classes), range(a, b)) for t, (classes, (a, b)) in pairs]


class DomainIncremental(Scenario):
    """Every task has all classes, in a domain of its own. One head is trained on from task to task and its latest form
    answers: task 1's begins as usual, task t's as task t-1 left it. The number of domains is the dataset's task count.
    """

    key = "domain_incremental"
    tag = "-domains"
    orders = "domains"
    listed_as = "domains"
    shared_head = True

    def check(self, dataset: DatasetConfig, n_tasks: int) -> None:
        """A task is a domain."""
        if n_tasks != dataset.tasks[0]:
            raise UserError(
                f"tasks: {n_tasks} tasks do not fit {dataset.key!r}, which is domain-incremental with "
                f"{dataset.tasks[0]} domains, one a task; use {dataset.tasks[0]}"
            )

    def check_domains(self, dataset: str, names: Sequence[str], n_tasks: int) -> None:
        """There are as many as tasks."""
        if not names:
            raise UserError(
                f"dataset {dataset}: scenario: domain_incremental needs the domain of every image, which its layout "
                "was not asked for; set options.domains (docs/datasets.md says which layouts have it)"
            )
        if len(names) != n_tasks:
            raise UserError(
                f"dataset {dataset}: tasks: says {n_tasks}, but the data has {len(names)} domains "
                f"({', '.join(names)}), one a task; mend the number or the data"
            )

    def cuts(self, classes: int, n_tasks: int, seed: int, kind: str | Sequence[int] = "mt19937") -> list[Cut]:
        """All domains, in an order drawn as class orders are."""
        order = class_order(n_tasks, seed, kind, self.orders)
        return [Cut(t, tuple(range(classes)), range(classes), domain) for t, domain in enumerate(order, 1)]

    def content(self, dataset: str, cut: Cut) -> str:
        """Dataset and domain."""
        return f"{dataset}:domain {cut.domain}"

    def by_head(self, tasks: Sequence[Task]) -> list[list[Task]]:
        """All together."""
        return [list(tasks)]

    def goes_on_from(self, heads: Sequence[Head]) -> Head | None:
        """The last one."""
        return heads[-1] if heads else None

    def open_heads(self, heads: Sequence[Head]) -> Sequence[Head]:
        """The last one."""
        return heads[-1:]

    def learnt_from(self, cuts: Sequence[Cut], joint: bool, parent: str) -> list[Any]:
        """The domain, and by way of the head all trainings before."""
        if joint:
            return [{"domains": [cut.domain for cut in cuts]}, None]
        return [{"domains": [cuts[-1].domain]}, {"head": parent} if len(cuts) > 1 else None]

    def listing(self, cuts: Sequence[Cut]) -> list[Any]:
        """The dataset's number of each domain."""
        return [cut.domain for cut in cuts]


DEFAULT = ClassIncremental.key
CLASS_INCREMENTAL = ClassIncremental()
SCENARIOS: dict[str, Scenario] = {kind.key: kind for kind in (CLASS_INCREMENTAL, DomainIncremental())}


def scenario_of(dataset: DatasetConfig) -> Scenario:
    """The kind of stream that a dataset's YAML asks for."""
    return SCENARIOS[dataset.scenario]
