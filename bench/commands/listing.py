"""What ``clmerge list`` prints: one dict a method, trainer, rule, dataset, protocol, suite or column. Torch-free."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bench.common.errors import UserError
from bench.common.paths import source_of
from bench.config.files import load_dataset_config, load_protocol, load_suite, yaml_files
from bench.data.dataset import availability
from bench.method import START, Plugin, Rule, Trainer
from bench.registry import Registry, dataset_folders
from bench.registry.resolve import look_up

Row = dict[str, Any]


def listing(what: str, protocol: str, data: Path, plugins: tuple[Path, ...]) -> list[Row]:
    """The rows of ``clmerge list WHAT``; every row has a ``key``, and a ``source``: who brought it.

    Raises:
        UserError: a broken plugin, dataset, protocol or suite file.
    """
    if what == "methods":
        return _methods(Registry.load(plugins), protocol)
    if what == "trainers":
        registry = Registry.load(plugins)
        return [_plugin(registry, cls, data=cls.data, adapts=cls.adapt) for cls in registry.trainers.values()]
    if what == "rules":
        registry = Registry.load(plugins)
        return [_plugin(registry, cls, data=cls.data) for cls in registry.rules.values()]
    if what == "datasets":
        folders = dataset_folders(plugins)
        return [_dataset(path, folders, data) for path in yaml_files("datasets", folders)]
    if what == "protocols":
        return [
            {"key": path.stem, "title": load_protocol(str(path)).title, "source": source_of(path)}
            for path in yaml_files("protocols")
        ]
    if what == "columns":
        from bench.report.columns import COLUMNS

        return [column.described() for column in COLUMNS]
    return [
        {"key": path.stem, "about": load_suite(str(path)).about, "source": source_of(path)}
        for path in yaml_files("suites")
    ]


def _source(registry: Registry, kind: str, key: str) -> str:
    return source_of(registry.sources[kind, key]) if (kind, key) in registry.sources else "clmerge"


def _methods(registry: Registry, protocol: str) -> list[Row]:
    tuned, rows = load_protocol(protocol).tuned, []
    for named in registry.methods.values():
        source = _source(registry, "method", named.key)
        try:
            rows.append({**registry.resolve(named.key, tuned).describe(), "source": source})
        except UserError:  # a required option that this protocol has no value for: listed all the same
            asked = look_up(registry, named.spelling, named.key)
            trainer, rule = asked.trainer, asked.rule
            rows.append(
                {
                    "key": named.key, "title": named.title, "paper": named.paper, "status": named.status,
                    "about": named.about, "variant": named.spelling, "trainer": {"key": trainer.key},
                    "rule": {"key": rule.key}, "start": asked.start,
                    "state": [f"trainer.{n}" for n in trainer.states()] + [f"rule.{n}" for n in rule.states()],
                    "data": {"training": trainer.data, "merging": rule.data}, "source": source,
                }
            )  # fmt: skip
    return rows


def _plugin(registry: Registry, cls: type[Trainer] | type[Rule], **more: Any) -> Row:
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
        "source": _source(registry, "trainer" if issubclass(cls, Trainer) else "rule", cls.key),
    }


def _parameter(cls: type[Plugin], name: str) -> Row:
    field = cls.options()[name]
    by_start = {cls.at_start.get(start, {}).get(name, field.default) for start in START}
    default = by_start.pop() if len(by_start) == 1 else field.default
    missing = default is dataclasses.MISSING
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return {
        "name": name,
        "type": kind,
        "default": "required" if missing else default,
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
        "scenario": config.scenario,
        "role": config.role,
        "available": why_not is None,
        "why_not": why_not,
        "source": source_of(path),
    }
