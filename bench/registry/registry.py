"""Plugins by name, and the grammar in which a method is spelled.

``[trainer+]rule[@start][/head][:field=value,...]``, or the name of a named method with the same ``@start``, ``/head``
and ``:fields`` to override it: ``pm``, ``pm:eps=0.3``, ``average@merged``, ``perturb+ties@previous``,
``ties:density=0.1``, ``average@merged/ncm``.
"""

from __future__ import annotations

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

from bench.common.errors import UserError
from bench.common.installed import entry_points, leave_out, package_of
from bench.common.paths import METHODS
from bench.method import NamedMethod, Plugin, Rule, Start, Trainer, take_declared
from bench.registry.resolve import look_up, resolve, resolve_rule
from bench.registry.resolved import Method

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
    def load(cls, extra: Iterable[str | Path] = (), check_names: bool = True) -> Registry:
        """Execute the plugin files of ``methods/``, ``CLMERGE_PLUGINS``, ``extra`` (folders or files) and the modules
        that installed packages name as ``clmerge.plugins``. A package whose module raises is left out, and said so.

        Args:
            extra: more plugin folders and files.
            check_names: whether to look up what every named method stands for; a worker, which is given methods that
                are resolved already, has no need of it.

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
        for named in registry.methods.values() if check_names else ():
            look_up(registry, named.spelling, f"method {named.key!r}")  # a wrong spelling is found at load, not at use
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
        return resolve(self, spelling, tuned, start, where, trainer, own)

    def resolve_rule(
        self, spelling: str, start: Start, trainer: type[Trainer] = Trainer, where: str = "methods"
    ) -> Method:
        """The rule of a spelling, for task models that are there already: its trainer and start are not ours to choose.

        Raises:
            UserError: an unknown name, another start than theirs, an option that is not the rule's, a wrong value.
        """
        return resolve_rule(self, spelling, start, trainer, where)


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
        UserError: a place that is named is not there, or is a file that is no Python file.
    """
    places = [METHODS]
    named = [("--plugins", p) for p in extra]
    named += [("CLMERGE_PLUGINS", p) for p in filter(None, os.environ.get("CLMERGE_PLUGINS", "").split(os.pathsep))]
    for origin, text in named:
        path = Path(text).expanduser().resolve()
        if not path.exists():
            raise UserError(f"{origin}: no plugin folder or file {path}")
        if not path.is_dir() and path.suffix != ".py":
            raise UserError(f"{origin}: {path} is no Python file; name a folder of plugins or a .py file")
        if path not in places:
            places.append(path)
    return places


def dataset_folders(extra: Iterable[str | Path] = ()) -> list[Path]:
    """The plugin folders that are a user's own: datasets are looked for in them too."""
    return [place for place in plugin_places(extra)[1:] if place.is_dir()]
