"""``clmerge check``: does a plugin keep to what the harness, and whoever compares its numbers, relies on?"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from bench.commands.options import common
from bench.common.errors import UserError
from bench.registry import Registry, plugin_places
from bench.registry.resolved import Method

QUICK_STEPS = 3  #: of rules that optimise coefficients, where the spelling says nothing else


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME_OR_FILE]...")
@click.option("--all", "everything", is_flag=True, help="Every named method, and every rule at start merged.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON and nothing else.")
@common
def check(
    plugins: tuple[Path, ...], quiet: bool, names: tuple[str, ...], everything: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Try methods, spellings, or all that plugin files declare, on a tiny world: pass, fail or skip, with the reason.

    \b
    clmerge check pm
    clmerge check ties@merged:density=0.1 perturb+average@previous
    clmerge check my_methods/momentum.py
    clmerge check --all --quiet
    """
    if not names and not everything:
        raise UserError("clmerge check: name a method, a spelling or a plugin file, or say --all")
    files = [_file(name) for name in names if name.endswith(".py")]
    known = plugin_places(plugins)
    registry = Registry.load([*plugins, *(f for f in dict.fromkeys(files) if f.parent not in known)])
    methods: dict[str, Method] = {}
    for name in names:
        asked = declared_names(registry, _file(name)) if name.endswith(".py") else [name]
        methods |= {n: asked_method(registry, n) for n in asked}
    if everything:
        methods |= {n: asked_method(registry, n) for n in all_names(registry)}
    from bench.checks import Finding, Worlds, check_method

    worlds, findings, began = Worlds(), list[Finding](), time.perf_counter()
    for name, method in methods.items():
        header = [name if name == method.variant else f"{name} = {method.variant}"]
        for finding in check_method(method, worlds, name):
            findings.append(finding)
            if not as_json and (finding.outcome == "fail" or not quiet):
                click.echo("\n".join([*header, _line(finding)]))
                header.clear()
    counts = Counter[str](f.outcome for f in findings)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(f) for f in findings], indent=1))
    else:
        told = f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped"
        click.echo(f"{len(methods)} methods: {told}, in {time.perf_counter() - began:.0f} s")
    sys.exit(1 if counts["fail"] else 0)


def _line(finding: Any) -> str:
    """One line a check: what is promised where it passed, the reason where it did not."""
    if finding.outcome == "pass":
        told = finding.about + (f" [{finding.reason}]" if finding.reason else "")
    else:
        told = finding.reason
    return f"  {'FAIL' if finding.outcome == 'fail' else finding.outcome}  {finding.check:<12} {told}"


def _file(name: str) -> Path:
    path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"clmerge check: no plugin file {path}")
    return path


def asked_method(registry: Registry, name: str) -> Method:
    """The method of a name or spelling; a bare rule is taken at start merged, a bare trainer (``perturb+``) with a
    stand-in that serves what was trained, and optimising rules take few steps.

    Raises:
        UserError: as :meth:`bench.registry.Registry.resolve` has it.
    """
    from bench.config.files import load_protocol

    head, colon, options = name.partition(":")
    head, slash, kind = head.partition("/")
    alone = head.endswith("+")
    if alone:
        from bench.checks import ServeTrained

        registry = dataclasses.replace(registry, rules={**registry.rules, ServeTrained.key: ServeTrained})
        head += f"{ServeTrained.key}@previous"
    elif "@" not in head and ("+" in head or head not in registry.methods):
        head += "@merged"
    method = registry.resolve(
        head + slash + kind + colon + options, load_protocol("embedded").tuned, where="clmerge check"
    )
    if "steps=" not in options and method.rule_options.get("steps", 0) > QUICK_STEPS:
        method = dataclasses.replace(method, rule_options=method.rule_options | {"steps": QUICK_STEPS})
    return method


def declared_names(registry: Registry, file: Path) -> Iterator[str]:
    """Its named methods, its rules and trainers that none of them uses."""
    mine = [(kind, key) for (kind, key), source in registry.sources.items() if source == str(file)]
    if not mine:
        raise UserError(
            f"clmerge check: {file} declares no method, rule or trainer; use the decorators of bench.method"
        )
    names = [key for kind, key in mine if kind == "method"]
    used = [asked_method(registry, name) for name in names]
    yield from names
    yield from (f"{key}@merged" for kind, key in mine if kind == "rule" and key not in {m.rule.key for m in used})
    yield from (f"{key}+" for kind, key in mine if kind == "trainer" and key not in {m.trainer.key for m in used})


def all_names(registry: Registry) -> Iterator[str]:
    """Every named method, and every rule at start merged, each combination once."""
    variants = set()
    for name in [*registry.methods, *(f"{rule}@merged" for rule in registry.rules if rule not in registry.methods)]:
        variant = asked_method(registry, name).variant
        if variant not in variants:
            variants.add(variant)
            yield name
