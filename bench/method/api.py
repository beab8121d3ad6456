"""What a plugin author reads: Trainer, Rule, Task and the three decorators. A method is ``trainer + rule @ start``.

* A **Trainer** says how task t is learnt: where the step's loss is taken, what is added to it, what it remembers.
* A **Rule** says what is served after task t, given what was just trained and what was served before.
* The **start** is where training of task t begins: ``pretrained`` (theta_0), ``previous`` (theta*_{t-1}, as trained)
  or ``merged`` (theta_hat_{t-1}, as served). It belongs to the method, not to the rule.

A plugin file holds one paper: its trainer, its rule and its named methods, for example::

    from bench.method.api import Rule, Task, Weights, method, option, rule

    @rule("halfway")
    class Halfway(Rule):
        '''theta_hat_t = (theta_hat_{t-1} + theta*_t) / 2, and theta*_1 after the first task.'''

        def merge(self, task: Task) -> Weights:
            return task.trained if task.t == 1 else (task.served + task.trained) / 2

    method("halfway", "plain+halfway@merged", title="Halfway")

Fields of a class are its options (:func:`option`: typed, with a range and a line of help) or its memory
(:func:`state`: lives across the tasks of one run, is saved for resuming, and its tensors are the *carried bytes*).
Plugin classes are created anew for every run. This module imports neither torch nor numpy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from typing_extensions import dataclass_transform

from bench.method.step import Step
from bench.method.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = [
    "START", "Gram", "Rule", "Start", "Step", "Task", "TaskVectorRule", "Trainer", "Weights", "method", "option",
    "rule", "state", "trainer",
]  # fmt: skip

Start = Literal["pretrained", "previous", "merged"]
START: tuple[Start, ...] = ("pretrained", "previous", "merged")
Status = Literal["published", "variant", "reconstruction", "baseline", "oracle"]


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    search: tuple[float, float] | list[Any] | None = None,
) -> Any:
    """A hyper-parameter of a plugin class; its annotation is its type (a ``Literal[...]`` is a choice).

    Without a default the protocol has to name a value (its ``tuned`` table) or the user does.
    The bounds are checked, with the type, before anything runs. ``search`` is where ``clmerge tune`` looks for a value:
    between two positive numbers, evenly in the logarithm, or in a list; an option without it is never tuned.
    """
    bounds = {name: value for name, value in (("ge", ge), ("gt", gt), ("le", le), ("lt", lt)) if value is not None}
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds, "search": search})


def state(default: Any = None, *, images: bool = False) -> Any:
    """What a plugin remembers across tasks: ``Weights`` (zeros at first unless a default is given), a number, or a
    dict of tensors. Saved at each task boundary; a callable default is called for each run.

    ``images=True`` declares a buffer of training images: its bytes count, and tables show the method apart.
    """
    told = {"state": True, "initial": default, "images": images}
    return dataclasses.field(default=None, init=False, repr=False, metadata=told)


@dataclasses.dataclass(frozen=True)
class Gram:
    """Second moment of what one layer is fed on a task's images at theta*_t, float64.

    ``sum`` is X^T X (d_in, d_in) of a Linear's inputs, or the column sums of squares (d,) of a LayerNorm's normalised
    inputs; ``rows`` is how many rows (images x tokens) X has.
    """

    sum: Tensor
    rows: int


@dataclass_transform(kw_only_default=True, field_specifiers=(option, state))
class Plugin:
    """Base of trainers and rules: every subclass is a keyword-only dataclass of options and state."""

    key: ClassVar[str] = ""
    reconstruction: ClassVar[bool] = False  #: not the authors' method: marked wherever a number of it appears
    #: option defaults by start, above the field's own. A default that changes its meaning is written here, for every
    #: start: names of cells leave out what is at the field's default, so that one has to stay what it was.
    at_start: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init_subclass__(cls) -> None:
        dataclasses.dataclass(kw_only=True, eq=False)(cls)

    @classmethod
    def options(cls) -> dict[str, dataclasses.Field[Any]]:
        """The fields made with :func:`option`, by name."""
        return {f.name: f for f in dataclasses.fields(cls) if "help" in f.metadata}  # type: ignore[arg-type]

    @classmethod
    def states(cls) -> dict[str, dataclasses.Field[Any]]:
        """The fields made with :func:`state`, by name."""
        return {f.name: f for f in dataclasses.fields(cls) if "state" in f.metadata}  # type: ignore[arg-type]

    @property
    def needs(self) -> tuple[str, ...]:
        """What of a task it reads besides weights and by-products: ``("fisher:exact",)``, ``("gram", "images")``,
        ``("fisher:exact@elsewhere",)`` for weights other than theta*_t; see :class:`bench.method.asking.Need`.

        ``clmerge merge`` asks for files by it before it reads any; ``clmerge check`` compares it with what is read.
        """
        return ()

    def begin(self, pretrained: Weights) -> None:
        """Give every state field its value before the first task, and theta_0 as ``self.pretrained``."""
        self.pretrained = pretrained
        for name, field in self.states().items():
            initial = field.metadata["initial"]
            if callable(initial):
                initial = initial()
            elif initial is None:
                initial = pretrained.zeros()
            setattr(self, name, initial)


class Trainer(Plugin):
    """How task t is learnt. The defaults are plain training on the current task."""

    adapt: ClassVar[bool] = True  #: False: only heads are trained, the backbone stays as it starts
    factors: ClassVar[Literal["AB", "B"]] = "AB"  #: which LoRA factors are trained; "B": A is drawn once and kept
    data: ClassVar[Literal["current", "seen"]] = "current"  #: "seen": all tasks so far, trained at the last only
    softmax: ClassVar[Literal["all", "own"]] = "all"  #: over all trained heads, or over the sample's own task's
    heads: ClassVar[Literal["own", "seen"]] = "own"  #: "seen": heads of earlier tasks are trained on, in one softmax
    reads_served: ClassVar[bool] = False  #: ``step.served`` is read: no other rule can use these trainings

    @classmethod
    def adapts(cls, t: int) -> bool:
        """Whether the backbone is trained in task t, or heads only. Known before anything is run."""
        return cls.adapt

    def directions(self, task: Task) -> Mapping[str, Tensor]:
        """Before task t: the rows (k, d_in) of LoRA's A by tensor, the first rank of which are taken; where there is
        none they are drawn. ``task.trained`` is where training begins. For ``factors = "B"``; must not change state.
        """
        return {}

    def weights(self, theta: Weights, start: Weights, rng: np.random.Generator) -> Weights:
        """Where this step's loss is taken, given theta (P,), with its graph, and where the task began."""
        return theta

    def penalty(self, theta: Weights) -> Tensor | float:
        """A scalar added to the loss."""
        return 0.0

    def ascent(self, theta: Weights, gradient: Weights) -> Weights:
        """Where this step's loss is taken, given also the gradient (P,) of the task loss on the step's batch at
        ``theta``, the point that :meth:`weights` gave; a step costs a second pass where this is overridden.
        """
        return theta

    def loss(self, step: Step) -> Tensor | float:
        """A scalar added to the loss that may read the batch, old heads and what was served. It must not change the
        state: a training that lies in the cache is not run again.
        """
        return 0.0

    def learnt(self, task: Task) -> None:
        """Update the state after task t."""


class Rule(Plugin):
    """What is served after task t."""

    #: what ``merge`` reads of the current task's training data; the Task refuses more. "oracle": validation images of
    #: every task seen, which no continual learner has.
    data: ClassVar[Literal["none", "unlabelled", "labelled", "oracle"]] = "none"
    #: True: task i is always served by theta*_i, the true task given (the upper reference of the merging literature)
    experts: ClassVar[bool] = False

    #: the order of tasks that were trained independently does not matter (``clmerge check`` tests it)
    order_invariant: ClassVar[bool] = False
    #: theta*_1 is served after task 1, and still where later tasks come out the same; False for a rule that scales or
    #: thins out task vectors, or has inertia (``clmerge check`` tests it)
    serves_first: ClassVar[bool] = True

    @property
    def record(self) -> tuple[str, ...]:
        """By-products of training that ``merge`` needs: ``("snapshots:4",)``, ``("grad_sq",)``."""
        return ()

    @property
    def reads(self) -> Literal["none", "unlabelled", "labelled", "oracle"]:
        """``data``, unless the options decide: then ``data`` is the most that any of them needs."""
        return self.data

    def merge(self, task: Task) -> Weights:
        """theta_hat_t. Must not change what the task holds."""
        raise NotImplementedError


class TaskVectorRule(Rule):
    """Base of rules that combine task vectors: what a task vector is where training does not start at theta_0.

    ``increment`` is what this task's training added; ``total`` is measured from theta_0, the default at start
    ``previous`` as MagMax (arXiv:2407.06322) reads it. At start ``pretrained`` both are theta*_t - theta_0.
    """

    at_start = {"previous": {"delta": "total"}}
    serves_first = False
    delta: Literal["increment", "total"] = option("increment", help="what a task vector is measured from")

    def tau(self, task: Task) -> Weights:
        """tau_t (P,)."""
        return task.trained - (task.start if self.delta == "increment" else task.pretrained)


class Task(Protocol):
    """What a rule sees after task t was trained: live in a run, or recorded from tensors. Never how many will come."""

    @property
    def t(self) -> int:
        """1 for the first task."""
        ...

    pretrained: Weights  #: theta_0
    start: Weights  #: where training of task t began
    served: Weights  #: theta_hat_{t-1}; theta_0 at t = 1
    trained: Weights  #: theta*_t
    recorded: dict[str, list[Weights]]  #: by-products by kind, e.g. ``recorded["snapshots"]``, oldest first

    def statistic(
        self, key: str, *, kind: str | None = None, samples: int | None = None, at: Weights | None = None
    ) -> Any:
        """A statistic of the harness (bench/statistics/) on the current task at ``at`` (default theta*_t).

        ``kind`` is its estimator (default: its first), ``samples`` how many images at most (default: the protocol's
        ``fisher_samples``).
        """
        ...

    def fisher(self, kind: str = "empirical", at: Weights | None = None) -> Weights:
        """Diagonal Fisher at ``at``: ``statistic("fisher", kind=kind, at=at)``; bench/statistics/fisher.py has the
        kinds.
        """
        ...

    def gram(self, samples: int) -> dict[str, Gram]:
        """By adapted tensor, what its layer is fed at theta*_t on that many of the current task's images.

        Linear and LayerNorm weights only; a tensor that has none is not in the dict.
        """
        ...

    def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
        """``steps`` batches of the current task's training images (b, C, H, W) and, if labelled, columns (b,)."""
        ...

    def logits(self, weights: Weights, x: Tensor, heads: str | int = "current") -> Tensor:
        """Logits (b, classes) under ``weights``; heads "current", "old" (tasks before), "seen" (all), "fresh", or the
        number of a task seen. On the scale of the training loss: divided by the protocol's ``train.temperature``.
        """
        ...

    def columns(self, t: int) -> range:
        """Task t's columns of the logits of heads "seen", t up to the current task."""
        ...

    def validation(self, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``steps`` batches of validation images (b, C, H, W) of all tasks seen, and columns among all classes seen
        (b,). Oracles only.
        """
        ...

    def accuracy(self, weights: Weights) -> float:
        """Fraction right on validation images of all tasks seen (oracles only). They were trained on unless the
        validation part is held out (``eval_split``).
        """
        ...

    def rng(self, purpose: str) -> np.random.Generator:
        """A random stream of this (run, task, purpose)."""
        ...

    def log(self, **scalars: float) -> None:
        """Keep numbers of this merge in the record."""
        ...


@dataclasses.dataclass(frozen=True)
class NamedMethod:
    """A published (or reference) combination under its name."""

    key: str
    spelling: str
    title: str
    paper: str | None
    status: Status
    about: str


#: Filled while a plugin file is executed, emptied by the registry that executes it.
declared: list[type[Plugin] | NamedMethod] = []

P = TypeVar("P", bound=type[Plugin])


def _register(key: str) -> Callable[[P], P]:
    def register(cls: P) -> P:
        cls.key = key
        declared.append(cls)
        return cls

    return register


def trainer(key: str) -> Callable[[P], P]:
    """Register a Trainer class under ``key``."""
    return _register(key)


def rule(key: str) -> Callable[[P], P]:
    """Register a Rule class under ``key``."""
    return _register(key)


def method(
    key: str,
    spelling: str,
    *,
    title: str | None = None,
    paper: str | None = None,
    status: Status = "published",
    about: str = "",
) -> None:
    """Name a combination ``[trainer+]rule@start[/head][:field=value,...]``.

    Args:
        key: the name in ``METHODS=...`` and in tables.
        spelling: what it stands for.
        title: how tables print it; default: the key.
        paper: for example ``"arXiv:2505.22389"``.
        status: "published", "variant" (an ablation), "reconstruction" (not the authors' method: marked wherever a
            number appears), "baseline" or "oracle" (sees more than a continual learner may).
        about: one line for ``clmerge list methods``.
    """
    declared.append(NamedMethod(key, spelling, title or key, paper, status, about))


def take_declared() -> Iterable[type[Plugin] | NamedMethod]:
    """What the plugin file just executed has declared."""
    taken = list(declared)
    declared.clear()
    return taken
