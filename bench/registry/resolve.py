"""From a spelling to a method: names to plugin classes, and the text of options to values of their types.

An option has the value that is spelled out; else what the protocol says of this method (``own``); else what the named
method stands for; else what the protocol says of the plugin (``tuned``); else what its class says of the start
(``at_start``); else its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.common.errors import UserError, unknown
from bench.config.schema import HeadConfig, check
from bench.method import START, NamedMethod, Plugin, Rule, Start, Trainer
from bench.registry.resolved import Method, check_options
from bench.registry.spelling import HeadKind, parse

if TYPE_CHECKING:
    from bench.registry.registry import Registry

Tuned = Mapping[str, Mapping[str, Any]]
NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Asked:
    """A spelling whose names are known: a named method is replaced by what it stands for."""

    trainer: type[Trainer]
    rule: type[Rule]
    start: Start | None
    head: HeadKind | None
    of_name: Mapping[str, str]  #: options that the named method stands for
    spelled: Mapping[str, str]  #: options that are spelled out


def look_up(registry: Registry, text: str, where: str) -> Asked:
    """The plugins that a spelling names.

    Raises:
        UserError: it is not of the grammar, or a name is unknown; the nearest ones are told.
    """
    spelling = parse(text, where)
    if spelling.trainer is None and spelling.name in registry.methods:
        base = look_up(registry, registry.methods[spelling.name].spelling, where)
        head, of_name = spelling.head or base.head, {**base.of_name, **base.spelled}
        if head != base.head:  # what the name says of its own head is not meant for another
            for name in _heads(of_name, base.head, base.trainer, base.rule):
                del of_name[name]
        return dataclasses.replace(
            base, start=spelling.start or base.start, head=head, of_name=of_name, spelled=spelling.options
        )
    learner = trainer_of(registry, spelling.trainer or "plain", f"{where}: {text!r}")
    if spelling.name not in registry.rules:
        if spelling.trainer is not None:
            raise unknown("rule", spelling.name, registry.rules, where)
        raise unknown("method", spelling.name, {**registry.rules, **registry.methods}, where)
    return Asked(learner, registry.rules[spelling.name], spelling.start, spelling.head, {}, spelling.options)


def trainer_of(registry: Registry, key: str, where: str) -> type[Trainer]:
    """The trainer of that key.

    Raises:
        UserError: there is none.
    """
    if key not in registry.trainers:
        raise unknown("trainer", key, registry.trainers, where)
    return registry.trainers[key]


def resolve(
    registry: Registry,
    text: str,
    tuned: Tuned | None = None,
    start: Start | None = None,
    where: str = "methods",
    trainer: str | None = None,
    own: Mapping[str, Any] | None = None,
) -> Method:
    """See :meth:`bench.registry.Registry.resolve`."""
    asked, tuned, own = look_up(registry, text, where), tuned or {}, own or {}
    here = f"{where}: {text!r}"
    learner, options = asked.trainer, {**asked.of_name, **own, **asked.spelled}
    head_options = take_head_options(options, asked, here)
    if trainer not in (None, learner.key) and learner.data == "current" and learner.adapt:
        options = _without_trainer(options, asked)
        learner = trainer_of(registry, str(trainer), where)
    begins = _start(learner, start or asked.start, text, where)
    given = tuple(_defaults(cls, begins, tuned) for cls in (learner, asked.rule))
    pinned = frozenset(name for values in given for name in values)
    for side, values in zip(_sides(options, learner, asked, here), given, strict=True):
        values.update(side)
    checked = (check_options(learner, given[0], here), check_options(asked.rule, given[1], here))
    method = Method("", None, learner, asked.rule, begins, *checked, pinned, asked.head, head_options)
    named = _name_of(registry, method, tuned, own)
    return dataclasses.replace(method, key=named.key if named else method.variant.removeprefix("plain+"), named=named)


def resolve_rule(
    registry: Registry, text: str, start: Start, trainer: type[Trainer] = Trainer, where: str = "methods"
) -> Method:
    """See :meth:`bench.registry.Registry.resolve_rule`."""
    asked, here = look_up(registry, text, where), f"{where}: {text!r}"
    written = parse(text).start
    if written not in (None, start):
        raise UserError(f"{here}: these models began at start {start!r}; leave @{written} out")
    rule, values = asked.rule, _defaults(asked.rule, start, {})
    pinned = frozenset(values)
    of_name, spelled = dict(asked.of_name), dict(asked.spelled)
    head_options = take_head_options(of_name, asked, here) | take_head_options(spelled, asked, here)
    for name, value in of_name.items():
        bare = name.removeprefix("rule.")
        if bare in rule.options():  # the other options of a named method are its trainer's
            values[bare] = value
    for name, value in spelled.items():
        bare = name.removeprefix("rule.")
        if bare not in rule.options():
            raise unknown(f"option of {rule.key!r}", bare, rule.options(), here)
        values[bare] = value
    checked = check_options(rule, values, here)
    method = Method("", None, trainer, rule, start, {}, checked, pinned, asked.head, head_options)
    return dataclasses.replace(method, key=method.variant)


def _heads(options: Iterable[str], head: HeadKind | None, trainer: type[Trainer], rule: type[Rule]) -> dict[str, str]:
    """Those of the options that are the head's, with the name of the field: ``head.X``, or ``X`` where neither the
    trainer nor the rule has an option of that name.
    """
    plugins = trainer.options().keys() | rule.options().keys()
    bare = {name for name in HeadConfig.options.get(head, ()) if name not in plugins} if head else set()
    return {name: name.removeprefix("head.") for name in options if name.startswith("head.") or name in bare}


def take_head_options(options: dict[str, Any], asked: Asked, here: str) -> dict[str, Any]:
    """The head's options, checked and taken out of all that are spelled.

    Raises:
        UserError: no head is spelled, or it does not read such an option, or not such a value.
    """
    names = _heads(options, asked.head, asked.trainer, asked.rule)
    given = {names[name]: options.pop(name) for name in names}
    if not given:
        return {}
    if asked.head is None:
        raise UserError(f"{here}: head.{next(iter(given))} needs the head that reads it, as in /ridge")
    known = HeadConfig.options.get(asked.head, ())
    for name in given:
        if name not in known:
            raise unknown(f"option of head {asked.head!r}", name, known, here)
    config = check({"kind": asked.head, **given}, HeadConfig, here)
    return {name: getattr(config, name) for name in given}


def _without_trainer(options: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """The rule's options alone, named as such, where another trainer takes the place of the one that is asked for."""
    of_trainer = asked.trainer.options().keys() - asked.rule.options().keys()
    return {
        f"rule.{name.removeprefix('rule.')}": value
        for name, value in options.items()
        if name not in of_trainer and not name.startswith("trainer.")
    }


def _start(trainer: type[Trainer], start: Start | None, text: str, where: str) -> Start:
    """Where training begins.

    Raises:
        UserError: there is a choice and nobody has made it.
    """
    if trainer.data == "seen" or not trainer.adapt:
        return "pretrained"  # nothing is carried on from the task before, so there is nothing to choose
    if start is None:
        written = parse(text)
        ways = ", ".join(dataclasses.replace(written, start=each).parts for each in START)
        raise UserError(f"{where}: {text!r} does not say where training starts; write one of {ways}")
    return start


def _defaults(cls: type[Plugin], start: Start, tuned: Tuned) -> dict[str, Any]:
    """The options that a start or a protocol decides."""
    return {**cls.at_start.get(start, {}), **tuned.get(cls.key, {})}


def _sides(
    options: Mapping[str, Any], trainer: type[Trainer], asked: Asked, here: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whose each option is: the trainer's and the rule's.

    Raises:
        UserError: it is nobody's, or both have one of that name and it is not said whose is meant.
    """
    classes: dict[str, type[Plugin]] = {"trainer": trainer, "rule": asked.rule}
    sides: dict[str, dict[str, Any]] = {"trainer": {}, "rule": {}}
    for name, value in options.items():
        prefix, _, bare = name.rpartition(".")
        if prefix and prefix not in sides:
            raise UserError(f"{here}: write trainer.{bare} or rule.{bare}, not {name!r}")
        owners = [side for side in ([prefix] if prefix else sides) if bare in classes[side].options()]
        if not owners:
            of_head = HeadConfig.options.get(asked.head, ()) if asked.head else ()
            raise unknown("option", bare, [*trainer.options(), *asked.rule.options(), *of_head], here)
        if len(owners) == 2:
            raise UserError(f"{here}: both parts have {bare!r}; write trainer.{bare} or rule.{bare}")
        sides[owners[0]][bare] = value
    return sides["trainer"], sides["rule"]


def _name_of(registry: Registry, method: Method, tuned: Tuned, own: Mapping[str, Any]) -> NamedMethod | None:
    """The named method that this one is, if any."""
    for named in registry.methods.values():
        asked = look_up(registry, named.spelling, named.key)
        if (asked.trainer, asked.rule, asked.start, asked.head) == _plugins_of(method):
            options = {**asked.of_name, **asked.spelled, **own}
            if take_head_options(options, asked, named.key) != method.head_options:
                continue
            try:
                if tuple(_named_options(method, options, tuned)) == (method.trainer_options, method.rule_options):
                    return named
            except UserError:
                continue  # a named method whose required option has no value here is nobody's name
    return None


def _plugins_of(method: Method) -> tuple[type[Trainer], type[Rule], Start, HeadKind | None]:
    return method.trainer, method.rule, method.start, method.head


def _named_options(method: Method, options: Mapping[str, Any], tuned: Tuned) -> Iterator[dict[str, Any]]:
    """What the trainer's and the rule's options would be with these of a named method; others' are passed over."""
    for side, cls in (("trainer", method.trainer), ("rule", method.rule)):
        bare = {name.removeprefix(f"{side}."): value for name, value in options.items()}
        given = {name: value for name, value in bare.items() if name in cls.options()}
        yield check_options(cls, {**_defaults(cls, method.start, tuned), **given}, "")
