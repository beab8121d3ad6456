"""A method as it runs: a trainer, a rule and a start, each with its options checked. Torch-free."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Protocol

import pydantic

from bench.common.errors import UserError, unknown
from bench.config.schema import HeadKind
from bench.method import NamedMethod, Plugin, Rule, Start, Trainer


class Plugins(Protocol):
    """Where plugin classes are found by their keys: :class:`bench.registry.Registry`."""

    trainers: dict[str, type[Trainer]]
    rules: dict[str, type[Rule]]
    methods: dict[str, NamedMethod]


@dataclass(frozen=True)
class Method:
    """A fully resolved method: classes, every option's value, the start, and the head where it brings its own."""

    key: str  #: the named method's key where the resolution equals it, else the variant
    named: NamedMethod | None
    trainer: type[Trainer]
    rule: type[Rule]
    start: Start
    trainer_options: dict[str, Any]
    rule_options: dict[str, Any]
    pinned: frozenset[str] = frozenset()  #: options whose default here is not the class's (its start, its protocol)
    head: HeadKind | None = None  #: stands above the protocol's; None: the protocol's
    head_options: Mapping[str, Any] = field(default_factory=dict)  #: those that are spelled out; above the protocol's

    @property
    def variant(self) -> str:
        """The full spelling, options printed where they may differ from the class's default."""
        options = ",".join(f"{name}={_spell(value)}" for name, value in (*self._printed(), *self.printed_head()))
        head = f"/{self.head}" if self.head else ""
        return f"{self.trainer.key}+{self.rule.key}@{self.start}{head}" + (f":{options}" if options else "")

    def _printed(self) -> Iterator[tuple[str, Any]]:
        """The options that may differ from their class's default, under names that can be read back."""
        both = self.trainer_options.keys() & self.rule_options.keys()
        sides = (("trainer", self.trainer, self.trainer_options), ("rule", self.rule, self.rule_options))
        for side, cls, options in sides:
            for name, value in options.items():
                if value != cls.options()[name].default or name in self.pinned:
                    yield (f"{side}.{name}" if name in both else name), value

    def printed_head(self) -> Iterator[tuple[str, Any]]:
        """The head's options that are spelled out."""
        taken = self.trainer_options.keys() | self.rule_options.keys()
        for name, value in self.head_options.items():
            yield (f"head.{name}" if name in taken else name), value

    @property
    def title(self) -> str:
        """How tables print it."""
        return self.named.title if self.named else self.key

    @property
    def status(self) -> str:
        """Registry status; an unnamed combination is a variant unless a part of it makes it something more."""
        if self.named:
            return self.named.status
        if self.trainer.data == "seen" or self.rule.data == "oracle" or self.rule.experts:
            return "oracle"
        return "reconstruction" if self.trainer.reconstruction or self.rule.reconstruction else "variant"

    def build(self) -> tuple[Trainer, Rule]:
        """Fresh instances for one run."""
        return self.trainer(**self.trainer_options), self.rule(**self.rule_options)

    def identity(self) -> dict[str, Any]:
        """What makes two methods the same one (JSON-able): part of every cell's identity.

        Options at their class's default are left out, so that an option more changes no identity.
        """

        def changed(cls: type[Plugin], options: dict[str, Any]) -> dict[str, Any]:
            fields = cls.options()
            return {name: value for name, value in options.items() if value != fields[name].default}

        return {
            "trainer": {"key": self.trainer.key, **changed(self.trainer, self.trainer_options)},
            "rule": {"key": self.rule.key, **changed(self.rule, self.rule_options)},
            "start": self.start,
            **({"head": self.head} if self.head else {}),
            **({"head_options": dict(self.head_options)} if self.head_options else {}),
        }

    def as_json(self) -> dict[str, Any]:
        """The method for another process (JSON-able): keys of plugins, and options that have their values already."""
        return {
            "key": self.key,
            "named": self.named.key if self.named else None,
            "trainer": self.trainer.key,
            "rule": self.rule.key,
            "start": self.start,
            "trainer_options": self.trainer_options,
            "rule_options": self.rule_options,
            "pinned": sorted(self.pinned),
            "head": self.head,
            "head_options": dict(self.head_options),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any], plugins: Plugins, where: str) -> Method:
        """The method of :meth:`as_json`; no spelling is read.

        Raises:
            UserError: a plugin is not there any more, or an option is not what its class takes any more.
        """
        trainer, rule = told["trainer"], told["rule"]
        for kind, key, known in (("trainer", trainer, plugins.trainers), ("rule", rule, plugins.rules)):
            if key not in known:
                raise unknown(kind, key, known, where)
        return cls(
            key=told["key"],
            named=plugins.methods.get(told["named"]),
            trainer=plugins.trainers[trainer],
            rule=plugins.rules[rule],
            start=told["start"],
            trainer_options=check_options(plugins.trainers[trainer], told["trainer_options"], where),
            rule_options=check_options(plugins.rules[rule], told["rule_options"], where),
            pinned=frozenset(told["pinned"]),
            head=told["head"],
            head_options=told["head_options"],
        )

    def describe(self) -> dict[str, Any]:
        """The row of ``clmerge list methods --json`` and the ``method`` block of a record."""
        named = self.named or NamedMethod(self.key, self.variant, self.key, None, "variant", "")
        return {
            "key": self.key,
            "title": self.title,
            "paper": named.paper,
            "status": self.status,
            "about": named.about,
            "variant": self.variant,
            "trainer": {"key": self.trainer.key, "adapt": self.trainer.adapt, **self.trainer_options},
            "rule": {"key": self.rule.key, **self.rule_options},
            "start": self.start,
            "head": self.head,
            "state": [f"trainer.{n}" for n in self.trainer.states()] + [f"rule.{n}" for n in self.rule.states()],
            "data": {
                "training": self.trainer.data,
                "merging": self.build()[1].reads,
                "keeps_images": any(
                    field.metadata["images"] for cls in (self.trainer, self.rule) for field in cls.states().values()
                ),
            },
        }


def check_options(cls: type[Plugin], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Every option's value, parsed and in range.

    Raises:
        UserError: unknown option, wrong type, out of range, or a required one missing.
    """
    fields = cls.options()
    for name in given:
        if name not in fields:
            raise unknown(f"option of {cls.key!r}", name, fields, where)
    values = {}
    for name, spec in fields.items():
        if name in given:
            try:
                values[name] = _adapter(cls, name).validate_python(given[name])  # type: ignore[arg-type]
            except pydantic.ValidationError as error:
                what = error.errors()[0]["msg"]
                raise UserError(f"{where}: {name}={given[name]!r}: {what} ({spec.metadata['help']})") from None
        elif spec.default is dataclasses.MISSING:
            raise UserError(
                f"{where}: {cls.key!r} needs a value for {name!r} ({spec.metadata['help']}): "
                f"write {cls.key}...:{name}=VALUE, or give one in the protocol under tuned.{cls.key}.{name}"
            )
        else:
            values[name] = spec.default
    return values


@lru_cache(maxsize=4096)
def _adapter(cls: type[Plugin], name: str) -> pydantic.TypeAdapter[Any]:
    spec = cls.options()[name]
    hint = spec.type
    if isinstance(hint, str):
        # Only this field's annotation (others may name types that are imported for checkers alone), where it stands.
        owner = next(c for c in cls.__mro__ if name in vars(c).get("__annotations__", {}))
        hint = eval(hint, dict(vars(sys.modules[owner.__module__])))
    constrained: Any = Annotated[hint, pydantic.Field(**spec.metadata["bounds"])]
    return pydantic.TypeAdapter(constrained)


def _spell(value: Any) -> str:
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
