"""``clmerge merge``: checkpoints in, one checkpoint out, by any rule."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.options import common
from bench.common.errors import UserError, unknown
from bench.method import START, Start
from bench.statistics import STATISTICS

if TYPE_CHECKING:
    from bench.offline import Offline


class ManyWords(click.Command):
    """Options that may be repeated take several words as well: ``--tasks a b`` is ``--tasks a --tasks b``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option before every word but the first."""
        many = {name for p in self.params if isinstance(p, click.Option) and p.multiple for name in p.opts}
        told, option, first = list[str](), "", True
        for word in args:
            if word.startswith("-") and word != "-":
                name, equals, _ = word.partition("=")
                option, first = name if name in many else "", not equals
            elif option and not first:
                told.append(option)
            else:
                first = False
            told.append(word)
        return super().parse_args(ctx, told)


def _files(name: str, help: str, required: bool = False) -> Any:
    path = click.Path(path_type=Path)
    return click.option(name, multiple=True, required=required, type=path, metavar="F...", help=help)


def _statistics(command: Any) -> Any:
    """``--statistic KEY F...`` for every statistic of the harness, and ``--KEY F...`` for short."""
    for key, (_, about) in reversed(STATISTICS.items()):
        command = _files(f"--{key}", f"Of each task, where the rule needs it: {about}.")(command)
    text = f"The same for any statistic ({', '.join(STATISTICS)}): its key, then the files."
    return click.option("--statistic", "by_key", multiple=True, metavar="KEY F...", help=text)(command)


def statistics_given(by_key: tuple[str, ...], short: Mapping[str, tuple[Path, ...]]) -> dict[str, list[Path]]:
    """The files of each statistic, a task after the other.

    Args:
        by_key: the words of every ``--statistic``: a key, then files.
        short: the files of ``--fisher`` and the like, by key.

    Raises:
        UserError: the first word is no key.
    """
    files, key = {key: list(paths) for key, paths in short.items()}, ""
    for word in by_key:
        if word in STATISTICS:
            key = word
        elif key:
            files[key].append(Path(word))
        else:
            raise unknown("statistic", word, STATISTICS, "--statistic")
    return {key: paths for key, paths in files.items() if paths}


@click.command(cls=ManyWords)
@click.option("--method", required=True, help="A rule or a method, e.g. ties:density=0.1 (its trainer means nothing).")
@click.option("--pretrained", required=True, type=click.Path(path_type=Path), metavar="F", help="theta_0.")
@_files("--tasks", "theta*_1 theta*_2 ...: safetensors files or PEFT LoRA adapters, in order.", required=True)
@_statistics
@_files("--grad-sq", "Of each task, where the rule needs it: squared gradients of training.")
@click.option("--start", type=click.Choice(START), help="Where each training began.  [default: pretrained]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE...", help="Options of the rule.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of rules that draw.")
@click.option("--only", metavar="REGEX", help="Merge tensors whose names match; copy the rest from --pretrained.")
@click.option("--ignore", metavar="REGEX", help="Copy tensors whose names match (heads) from --pretrained.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), metavar="F",
    help="The safetensors file to write; with {t} in its name, one after every task.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else.")
@common
def merge(
    plugins: tuple[Path, ...], quiet: bool, method: str, pretrained: Path,
    tasks: tuple[Path, ...], by_key: tuple[str, ...], grad_sq: tuple[Path, ...], start: Start | None,
    settings: tuple[str, ...], seed: int, only: str | None, ignore: str | None, output: Path, as_json: bool,
    **short: tuple[Path, ...],
) -> None:  # fmt: skip
    """Merge checkpoints offline: safetensors in, safetensors out, names, shapes and dtypes as in --pretrained.

    \b
    clmerge merge --method ties:density=0.1 --pretrained base.safetensors \\
        --tasks a.safetensors b.safetensors -o m.safetensors
    clmerge merge --method pm --start merged --pretrained base.safetensors --tasks lora_1 lora_2 \\
        --fisher f1.safetensors f2.safetensors -o m.safetensors
    """
    for setting in settings:
        if not setting.partition("=")[2]:
            raise UserError(f"--set: {setting!r} is not NAME=VALUE")
        method += ("," if ":" in method else ":") + setting
    output = output.expanduser()
    statistics = statistics_given(by_key, short)
    check_output(output, [pretrained, *tasks, *chain.from_iterable(statistics.values()), *grad_sq])
    from safetensors import SafetensorError

    from bench.common.files import save_plain
    from bench.offline import Offline

    began = time.perf_counter()
    run = Offline(
        method, pretrained, tasks, None, None, grad_sq or None, start, seed, only, ignore, plugins, statistics
    )
    each, written, step = "{t}" in output.name, list[Path](), None
    for step in run.steps():
        if each or step.t == len(tasks):
            path = output.with_name(output.name.replace("{t}", str(step.t)))
            try:
                save_plain(path, run.export(step.served), run.metadata())
            except SafetensorError as error:
                raise UserError(f"-o {path}: could not be written ({' '.join(str(error).split())})") from None
            written.append(path)
    assert step is not None
    told = summary(run, len(tasks), written, step.scalars, time.perf_counter() - began)
    if as_json:
        click.echo(json.dumps(told, indent=1))
        return
    for note in [] if quiet else run.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(_line(told))


def check_output(output: Path, inputs: list[Path]) -> None:
    """Refuse an output that would not be written, before anything is read.

    Raises:
        UserError: it is one of the inputs, no safetensors name, or cannot be written there.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"-o {output}: what is written is a safetensors file; end its name in .safetensors")
    for t in range(1, len(inputs)):
        target = Path(str(output).replace("{t}", str(t))).resolve()
        for given in inputs:
            if target in (given.expanduser().resolve(), given.expanduser().resolve() / "adapter_model.safetensors"):
                raise UserError(f"-o {output}: that is an input ({given}); name another file")
    if output.is_dir():
        raise UserError(f"-o {output}: a folder; name a file in it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"-o {output}: cannot write there ({error.strerror}); name another folder") from None


def summary(
    run: Offline, tasks: int, written: list[Path], scalars: dict[str, float | None], seconds: float
) -> dict[str, Any]:
    """What was done, JSON-able; ``scalars`` are those that the rule logged after the last task."""
    import resource

    specs = run.pretrained.specs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return {
        "method": run.variant,
        "written": [os.fspath(path) for path in written],
        "tasks": tasks,
        "merged": len(run.names),
        "copied": len(specs) - len(run.names),
        "parameters": sum(math.prod(specs[name].shape) for name in run.names),
        "dtypes": sorted({specs[name].dtype for name in run.names}),
        "computed_in": str(run.dtype).removeprefix("torch."),
        "scalars": scalars,
        "seconds": round(seconds, 3),
        "peak_mb": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "carried_bytes": run.carried_bytes,
        "notes": run.notes,
    }


def _line(told: dict[str, Any]) -> str:
    copied = f", {told['copied']} copied from pretrained" if told["copied"] else ""
    scalars = "".join(
        f", {name} {'not finite' if value is None else format(value, '.4g')}" for name, value in told["scalars"].items()
    )
    files = told["written"][-1] if len(told["written"]) == 1 else f"{told['written'][0]} ... {told['written'][-1]}"
    return (
        f"{files}: {told['method']} of {told['tasks']} tasks, {told['merged']} tensors merged "
        f"({told['parameters']:,} numbers, {' '.join(told['dtypes'])}, computed in {told['computed_in']}){copied}"
        f"{scalars}; {told['seconds']:.1f} s, peak {told['peak_mb']:.0f} MB, "
        f"carried {told['carried_bytes'] / 1e6:.1f} MB"
    )
