"""The options of the command line: what every command takes, and what says which grid is meant."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import yaml

from bench.common.errors import Interrupted, UserError
from bench.config.files import load_suite
from bench.config.schema import EvalSplit, SuiteConfig, check
from bench.execute.executors import kinds

Command = Callable[..., None]


_SHARED = {
    "results": click.option(
        "--results",
        type=click.Path(path_type=Path),
        envvar="CLMERGE_RESULTS",
        default=Path("results"),
        show_default=True,
        help="Folder of records and cache.",
    ),
    "data": click.option(
        "--data",
        type=click.Path(path_type=Path),
        envvar="CLMERGE_DATA",
        default=Path("data"),
        show_default=True,
        help="Folder of datasets.",
    ),
    "plugins": click.option(
        "--plugins",
        type=click.Path(path_type=Path),
        multiple=True,
        help="More plugin folders or files (also CLMERGE_PLUGINS).",
    ),
    "quiet": click.option("--quiet", is_flag=True, help="Print results only."),
}


def common(function: Command) -> Command:
    """The options that mean the same on every command, and one line instead of a traceback for a mistake or Ctrl-C.

    A command has those of them that its function takes, so none that it does not read.
    """
    takes = inspect.signature(function).parameters

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def wrapped(debug: bool, **options: Any) -> None:
        folders = {name: options[name].expanduser().resolve() for name in ("results", "data") if name in options}
        try:
            function(**options | folders)
        except UserError as error:
            if debug:
                raise
            click.echo(f"clmerge: {error}", err=True)
            sys.exit(2)
        except Interrupted as stop:
            click.echo(f"\n{str(stop).capitalize()}; the same command goes on where it stopped", err=True)
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` closed it; not an error
        except OSError as error:
            if debug:
                raise
            click.echo(f"clmerge: {error.filename or 'file'}: {error.strerror or error}", err=True)
            sys.exit(2)

    for name in reversed([name for name in _SHARED if name in takes]):
        wrapped = _SHARED[name](wrapped)
    return wrapped


def execution(default: str = "ray") -> Callable[[Command], Command]:
    """The options that say how and where cells are run; the function takes them as ``**how``, for a ``Session``.

    Args:
        default: the executor where none is named.
    """
    options = (
        click.option(
            "--executor",
            type=click.Choice(kinds()),
            default=default,
            show_default=True,
            help="Ray Tune, in this process, or jobs of a SLURM cluster.",
        ),
        click.option("--workers", type=click.IntRange(1), help="Processes at once; default: what fits the machine."),
        click.option(
            "--gpus-per-run",
            type=click.FloatRange(0, 1),
            help="Share of a GPU for one process, 0 for none; default 1 where there are GPUs.",
        ),
    )

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def grid(function: Command) -> Command:
    """The options that say what the grid is."""

    @click.option(
        "--suite",
        default="embedded",
        show_default=True,
        help="A grid from suites/, or a YAML file; the options below override it.",
    )
    @click.option("--datasets", help="Keys or YAML files; 'all': every dataset whose data is on this machine.")
    @click.option("--tasks", help="Task counts, e.g. 5,10.")
    @click.option("--methods", help="Names or spellings [trainer+]rule[@start][:field=value,...].")
    @click.option("--start", help="pretrained, previous, merged: for every method that has the choice.")
    @click.option("--trainer", "--trainers", "trainers", help="Trainers, each for every method that has the choice.")
    @click.option("--head", "--heads", "heads", help="Heads, each for every method that brings none.")
    @click.option("--seeds", help="Repeats: a count (3), a list (0,1,7) or a span (3-12).")
    @click.option("--class-order-seed", type=click.IntRange(0), help="Pin the class order; repeats vary the run seed.")
    @click.option("--run-seed", type=click.IntRange(0), help="Pin the run seed; repeats vary the class order.")
    @click.option("--protocol", help="Presets or YAML files.")
    @click.option(
        "--protocol-set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one field, e.g. train.epochs=4; several values, lora.rank=4,10,16, run the grid with each.",
    )
    @click.option(
        "--eval-split",
        type=click.Choice(get_args(EvalSplit)),
        help="val: train on 90 %, evaluate on the rest; test_heldout: train on 90 %, evaluate on the test set.",
    )
    @click.option(
        "--rerun",
        type=click.Choice(["stale", "done"]),
        multiple=True,
        help="Run these again although they have a record.",
    )
    @click.option("--cache/--no-cache", "use_cache", default=True, help="Share trainings and statistics between cells.")
    @functools.wraps(function)
    def wrapped(**options: Any) -> None:
        function(**options)

    return wrapped


def words(text: str, where: str) -> list[str]:
    """Names between spaces or commas; a comma that continues a method's options (``ties:density=0.1,lam=1``) is none.

    Raises:
        UserError: there is none.
    """
    found = [w for w in re.split(r"\s+|,(?![\w.]+=)", text) if w]
    if not found:
        raise UserError(f"{where}: empty; leave it out, or name something")
    return found


def asked_suite(options: dict[str, Any]) -> SuiteConfig:
    """The suite with the command line's overrides.

    Raises:
        UserError: a value that cannot be read, or of the wrong type.
    """
    suite = load_suite(options["suite"])
    changes: dict[str, Any] = {}
    for name in ("datasets", "tasks", "methods", "start", "trainers", "heads", "protocol"):
        if options[name] is not None:
            one_file = name == "protocol" and Path(options[name]).is_file()  # its path may have spaces
            changes[name] = [options[name]] if one_file else words(options[name], f"--{name}")
    for name in ("seeds", "eval_split"):
        if options[name] is not None:
            changes[name] = options[name]
    settings = alternatives(options["settings"])
    return check(
        {**suite.model_dump(), **changes, "protocol_set": suite.protocol_set | settings}, SuiteConfig, "command line"
    )


def alternatives(settings: Sequence[str]) -> dict[str, list[Any]]:
    """What ``--protocol-set KEY=VALUE`` lists for each field: values between commas, where ``[4, 10]`` is one value.

    Raises:
        UserError: no ``KEY=VALUE``, a value that is empty or no YAML, or a field that is named twice.
    """
    found: dict[str, list[Any]] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--protocol-set: {setting!r} is not KEY=VALUE")
        if key in found:
            raise UserError(f"--protocol-set: {key} is named twice; {key}=A,B asks for both values")
        try:
            found[key] = [yaml.safe_load(value) for value in _between_commas(text)]
        except yaml.YAMLError:
            raise UserError(f"--protocol-set: {setting!r}: the value is not valid YAML") from None
    return found


def _between_commas(text: str) -> list[str]:
    """The parts of a text, cut at commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        else:
            depth += (c in "[{") - (c in "]}")
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return parts
