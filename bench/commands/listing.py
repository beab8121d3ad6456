"""What ``clmerge list`` prints: one dict a method, trainer, rule, dataset, protocol or suite. Torch-free."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bench.common.errors import UserError
from bench.common.paths import DATASETS, PROTOCOLS, SUITES
from bench.config.files import load_dataset_config, load_protocol, load_suite
from bench.data.dataset import availability
from bench.method import Plugin, Rule, Trainer
from bench.registry import Registry, plugin_places

Row = dict[str, Any]


def listing(what: str, protocol: str, data: Path, plugins: tuple[Path, ...]) -> list[Row]:
    """The rows of ``clmerge list WHAT``; every row has a ``key``.

    Raises:
        UserError: a broken plugin, dataset, protocol or suite file.
    """
    if what == "methods":
        return _methods(Registry.load(plugins), protocol)
    if what == "trainers":
        return [_plugin(cls, data=cls.data, adapts=cls.adapt) for cls in Registry.load(plugins).trainers.values()]
    if what == "rules":
        return [_plugin(cls, data=cls.data) for cls in Registry.load(plugins).rules.values()]
    if what == "datasets":
        folders = [p for p in plugin_places(plugins)[1:] if p.is_dir()]
        return [
            _dataset(path, folders, data) for folder in [DATASETS, *folders] for path in sorted(folder.glob("*.yaml"))
        ]
    if what == "protocols":
        return [{"key": p.stem, "title": load_protocol(p.stem).title} for p in sorted(PROTOCOLS.glob("*.yaml"))]
    return [{"key": p.stem, "about": load_suite(p.stem).about} for p in sorted(SUITES.glob("*.yaml"))]


def _methods(registry: Registry, protocol: str) -> list[Row]:
    tuned, rows = load_protocol(protocol).tuned, []
    for named in registry.methods.values():
        try:
            rows.append(registry.resolve(named.key, tuned).describe())
        except UserError:  # a required option that this protocol has no value for: listed all the same
            part, _, start = named.spelling.partition(":")[0].partition("@")
            trainer, _, rule = part.rpartition("+")
            kinds = registry.trainers[trainer or "plain"], registry.rules[rule]
            rows.append(
                {
                    "key": named.key, "title": named.title, "paper": named.paper, "status": named.status,
                    "about": named.about, "variant": named.spelling, "trainer": {"key": trainer or "plain"},
                    "rule": {"key": rule}, "start": start,
                    "state": [f"trainer.{n}" for n in kinds[0].states()] + [f"rule.{n}" for n in kinds[1].states()],
                    "data": {"training": kinds[0].data, "merging": kinds[1].data},
                }
            )  # fmt: skip
    return rows


def _plugin(cls: type[Trainer] | type[Rule], **more: Any) -> Row:
    doc = (cls.__doc__ or "").strip().splitlines()
    parameters = [_parameter(cls, name) for name in cls.options()]
    told = [f"{p['name']}={p['default']}" for p in parameters]
    return {
        "key": cls.key,
        "about": doc[0] if doc else "",
        "options": told,
        **more,
        "state": list(cls.states()),
        "parameters": parameters,
    }


def _parameter(cls: type[Plugin], name: str) -> Row:
    field = cls.options()[name]
    missing = field.default is dataclasses.MISSING
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return {
        "name": name,
        "type": kind,
        "default": "required" if missing else field.default,
        "range": field.metadata["bounds"],
        "help": field.metadata["help"],
    }


def _dataset(path: Path, folders: list[Path], data: Path) -> Row:
    config = load_dataset_config(str(path), folders)
    why_not = availability(config, data)
    return {
        "key": config.key,
        "title": config.title,
        "classes": config.classes,
        "train": config.train,
        "test": config.test,
        "tasks": config.tasks,
        "role": config.role,
        "available": why_not is None,
        "why_not": why_not,
    }
