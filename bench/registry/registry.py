"""Plugins by name, and the grammar in which a method is spelled.

``[trainer+]rule[@start][/head][:field=value,...]``, or the name of a named method with the same ``@start``, ``/head``
and ``:fields`` to override it: ``pm``, ``pm:eps=0.3``, ``average@merged``, ``perturb+ties@previous``,
``ties:density=0.1``, ``average@merged/ncm``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

from bench.common.errors import UserError, unknown
from bench.common.installed import entry_points, leave_out, package_of
from bench.common.paths import METHODS
from bench.config.schema import HeadKind
from bench.method import START, NamedMethod, Plugin, Rule, Start, Trainer, take_declared
from bench.registry.resolved import Method, check_options
from bench.registry.spelling import HEADS, SPELLING, Spelled

_of_entry_points: dict[str, list[type[Plugin] | NamedMethod]] = {}

Trainer.key = "plain"  # the base class is plain training; it needs no plugin file


@dataclass
class Registry:
    """Trainers, rules and named methods of all plugin folders."""

    trainers: dict[str, type[Trainer]] = field(default_factory=lambda: {"plain": Trainer})
    rules: dict[str, type[Rule]] = field(default_factory=dict)
    methods: dict[str, NamedMethod] = field(default_factory=dict)
    sources: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def load(cls, extra: Iterable[str | Path] = ()) -> Registry:
        """Execute the plugin files of ``methods/``, ``CLMERGE_PLUGINS``, ``extra`` (folders or files) and the modules
        that installed packages name as ``clmerge.plugins``. A package whose module raises is left out, and said so.

        Raises:
            UserError: a folder is missing, a file raises (file and line are named), or a name is taken.
        """
        registry = cls()
        for place in plugin_places(extra):
            files = sorted(p for p in place.glob("*.py") if not p.name.startswith("_")) if place.is_dir() else [place]
            for file in files:
                registry._execute(file)
        for entry in entry_points("plugins"):
            registry._add(_declared_by(entry), package_of(entry))
        for named in registry.methods.values():
            registry._parse(named.spelling, f"method {named.key!r}")  # a wrong spelling is found at load, not at use
        return registry

    def _execute(self, file: Path) -> None:
        name = f"clmerge_plugin_{file.stem}_{hashlib.blake2b(str(file).encode(), digest_size=4).hexdigest()}"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses looks the module up by name
        take_declared()
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
            line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else "?"
            raise UserError(
                f"plugin {file}, line {line}: {type(error).__name__}: {error}; mend or remove it"
            ) from error
        self._add(take_declared(), str(file))

    def _add(self, things: Iterable[type[Plugin] | NamedMethod], source: str) -> None:
        for thing in things:
            if isinstance(thing, NamedMethod):
                kind, table = "method", cast(dict[str, Any], self.methods)
            elif issubclass(thing, Trainer):
                kind, table = "trainer", cast(dict[str, Any], self.trainers)
            else:
                kind, table = "rule", cast(dict[str, Any], self.rules)
            if thing.key in table:
                first = self.sources.get((kind, thing.key), "bench")
                raise UserError(f"{source}: {kind} {thing.key!r} is already defined in {first}; choose another key")
            table[thing.key] = thing
            self.sources[kind, thing.key] = source

    # ---- the grammar -------------------------------------------------------------------------------------------
    def _parse(self, spelling: str, where: str) -> Spelled:
        """The spelling with what a named method stands for put in."""
        match = SPELLING.fullmatch(spelling)
        if match is None:
            raise UserError(f"{where}: {spelling!r} is not [trainer+]rule[@start][/head][:field=value,...]")
        name, start, head = match["name"], match["start"], cast(HeadKind | None, match["head"])
        if start is not None and start not in START:
            raise unknown("start", start, START, f"{where}: {spelling!r}")
        if head is not None and head not in HEADS:
            raise unknown("head", head, HEADS, f"{where}: {spelling!r}")
        options: dict[str, str] = {}
        for pair in filter(None, (match["options"] or "").split(",")):
            key, equals, value = pair.partition("=")
            if not equals:
                raise UserError(f"{where}: {spelling!r}: {pair!r} is not field=value")
            options[key.strip()] = value.strip()
        if match["trainer"] is None and name in self.methods:
            base = self.methods[name]
            of = self._parse(base.spelling, where)
            return Spelled(of.trainer, of.rule, start or of.start, head or of.head, {**of.options, **options})
        trainer = match["trainer"] or "plain"
        if trainer not in self.trainers:
            raise unknown("trainer", trainer, self.trainers, f"{where}: {spelling!r}")
        if name not in self.rules:
            known = self.rules if match["trainer"] else {**self.rules, **self.methods}
            raise unknown("rule" if match["trainer"] else "method", name, known, where)
        return Spelled(trainer, name, start, head, options)

    def resolve(
        self,
        spelling: str,
        tuned: Mapping[str, Mapping[str, Any]] | None = None,
        start: Start | None = None,
        where: str = "methods",
        trainer: str | None = None,
        own: Mapping[str, Any] | None = None,
    ) -> Method:
        """The method a spelling stands for.

        Args:
            spelling: see the module's docstring.
            tuned: option values by plugin key that a protocol has chosen on validation data; they stand above the
                class defaults and below anything spelled out.
            start: overrides the start where the method has one to choose (``START=...``).
            where: what an error names as the place.
            trainer: overrides the trainer, and its options go with it, where the method trains a backbone task by task
                (``TRAINER=...``).
            own: option values that a protocol has chosen for this method alone; they stand above ``tuned`` and what a
                named method stands for, and below anything spelled out.

        Raises:
            UserError: an unknown name, option, or start; a value of the wrong type or out of range; no start.
        """
        parts = self._parse(spelling, where)
        learner, rule, own = self.trainers[parts.trainer], self.rules[parts.rule], own or {}
        typed = {pair.partition("=")[0].strip() for pair in spelling.partition(":")[2].split(",")}
        named_texts = {name: text for name, text in parts.options.items() if name not in typed}
        texts = {**named_texts, **own, **{name: text for name, text in parts.options.items() if name in typed}}
        if trainer not in (None, parts.trainer) and learner.data == "current" and learner.adapt:
            if trainer not in self.trainers:
                raise unknown("trainer", trainer, self.trainers, where)
            gone = {name for name in texts if name.startswith("trainer.")} | learner.options().keys() - rule.options()
            texts = {f"rule.{n.removeprefix('rule.')}": text for n, text in texts.items() if n not in gone}
            learner = self.trainers[trainer]
        chosen = cast(Start | None, start or parts.start)
        if learner.data == "seen" or not learner.adapt:
            chosen = "pretrained"  # nothing is carried on from the task before, so there is nothing to choose
        if chosen is None:
            name, slash, head = spelling.split(":")[0].partition("/")
            ways = ", ".join(f"{name}@{s}{slash}{head}" for s in START)
            raise UserError(f"{where}: {spelling!r} does not say where training starts; write one of {ways}")
        values: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for values_of, cls in zip(values, (learner, rule), strict=True):
            values_of.update({**cls.at_start.get(chosen, {}), **(tuned or {}).get(cls.key, {})})
        pinned = frozenset(values[0]) | frozenset(values[1])
        for name, text in texts.items():
            prefix, _, bare = name.rpartition(".")
            sides = {"trainer": (learner, values[0]), "rule": (rule, values[1])}
            if prefix and prefix not in sides:
                raise UserError(f"{where}: {spelling!r}: write trainer.{bare} or rule.{bare}, not {name!r}")
            owners = [side for side in ([prefix] if prefix else sides) if bare in sides[side][0].options()]
            if not owners:
                raise unknown("option", bare, {**learner.options(), **rule.options()}, f"{where}: {spelling!r}")
            if len(owners) == 2:
                raise UserError(f"{where}: {spelling!r}: both parts have {bare!r}; write trainer.{bare} or rule.{bare}")
            sides[owners[0]][1][bare] = text
        trainer_options = check_options(learner, values[0], f"{where}: {spelling!r}")
        rule_options = check_options(rule, values[1], f"{where}: {spelling!r}")
        found = Method("", None, learner, rule, chosen, trainer_options, rule_options, pinned, parts.head)
        named = self._name_of(found, tuned, own)
        key = named.key if named else found.variant.removeprefix("plain+")
        return dataclasses.replace(found, key=key, named=named)

    def resolve_rule(
        self, spelling: str, start: Start, trainer: type[Trainer] = Trainer, where: str = "methods"
    ) -> Method:
        """The rule of a spelling, for task models that are there already: its trainer and start are not ours to choose.

        Raises:
            UserError: an unknown name, another start than theirs, an option that is not the rule's, a wrong value.
        """
        _, rule_key, _, head, texts = self._parse(spelling, where)
        match = SPELLING.fullmatch(spelling)
        asked = match["start"] if match else None
        if asked not in (None, start):
            raise UserError(f"{where}: {spelling!r}: these models began at start {start!r}; leave @{asked} out")
        rule = self.rules[rule_key]
        typed = {pair.partition("=")[0].strip() for pair in ((match and match["options"]) or "").split(",")}
        own = {name.removeprefix("rule."): text for name, text in texts.items()}
        for name in own:
            if name not in rule.options() and name in typed:
                raise unknown(f"option of {rule_key!r}", name, rule.options(), f"{where}: {spelling!r}")
        at_start = rule.at_start.get(start, {})
        given = {**at_start, **{name: text for name, text in own.items() if name in rule.options()}}
        options = check_options(rule, given, f"{where}: {spelling!r}")
        found = Method("", None, trainer, rule, start, {}, options, frozenset(at_start), head)
        return dataclasses.replace(found, key=found.variant)

    def _name_of(
        self, method: Method, tuned: Mapping[str, Mapping[str, Any]] | None, own: Mapping[str, Any]
    ) -> NamedMethod | None:
        for named in self.methods.values():
            *parts, texts = self._parse(named.spelling, named.key)
            if parts != [method.trainer.key, method.rule.key, method.start, method.head]:
                continue
            sides: dict[str, dict[str, Any]] = {"trainer": {}, "rule": {}}
            for (side, values), cls in zip(sides.items(), (method.trainer, method.rule), strict=True):
                values.update({**cls.at_start.get(method.start, {}), **(tuned or {}).get(cls.key, {})})
                bare = {name.removeprefix(f"{side}."): value for name, value in {**texts, **own}.items()}
                values.update({name: value for name, value in bare.items() if name in cls.options()})
            try:
                pair = (
                    check_options(method.trainer, sides["trainer"], ""),
                    check_options(method.rule, sides["rule"], ""),
                )
            except UserError:
                continue  # a named method whose required option has no value here is nobody's name
            if pair == (method.trainer_options, method.rule_options):
                return named
        return None


def _declared_by(entry: EntryPoint) -> list[type[Plugin] | NamedMethod]:
    """What the module of an entry point declares; nothing where it cannot be imported."""
    take_declared()
    try:
        entry.load()
    except Exception as error:
        take_declared()
        leave_out(entry, f"{type(error).__name__}: {error}")
        return []
    # A module is executed once in the life of a process: what it declared then is kept for later registries.
    return _of_entry_points.setdefault(entry.value, list(take_declared()))


def plugin_places(extra: Iterable[str | Path] = ()) -> list[Path]:
    """Absolute plugin folders and files, the shipped ones first.

    Raises:
        UserError: a place that is named but not there.
    """
    places = [METHODS]
    named = [("--plugins", p) for p in extra]
    named += [("CLMERGE_PLUGINS", p) for p in filter(None, os.environ.get("CLMERGE_PLUGINS", "").split(os.pathsep))]
    for origin, text in named:
        path = Path(text).expanduser().resolve()
        if not path.exists():
            raise UserError(f"{origin}: no plugin folder or file {path}")
        if path not in places:
            places.append(path)
    return places
