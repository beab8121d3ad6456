"""``clmerge data``: have a dataset's files, check them, prepare them, look at them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from bench.commands.options import common
from bench.common.errors import UserError
from bench.config.files import for_dataset, load_dataset_config, load_protocol, yaml_files
from bench.config.schema import DatasetConfig, ImageConfig
from bench.registry import dataset_folders

NAMES = click.argument("names", nargs=-1, required=True, metavar="NAME...")
PROTOCOL = click.option(
    "--protocol", default="embedded", show_default=True, help="Whose `image` says what the backbone is shown."
)


@click.group()
def data() -> None:
    """Download, check, prepare and show datasets. NAME: a key (clmerge list datasets), a YAML file, or all."""


@data.command()
@NAMES
@common
def get(data: Path, plugins: tuple[Path, ...], quiet: bool, names: tuple[str, ...]) -> None:
    """Download, check and extract; what is there and right is left alone.

    \b
    clmerge data get cifar100
    clmerge data get imagenet_r cub200 --data /scratch/data
    """
    from bench.data.download.fetch import get as have

    def say(line: str) -> None:
        if not quiet:
            click.echo(line)

    failed = False
    for config in _configs(names, plugins):
        try:
            have(config, data, say)
        except UserError as error:
            if len(names) == 1 and "all" not in names:
                raise
            failed = True  # the others are not to wait for it
            click.echo(f"clmerge: {error}", err=True)
    if failed:
        sys.exit(2)


@data.command()
@NAMES
@common
def verify(data: Path, plugins: tuple[Path, ...], names: tuple[str, ...]) -> None:
    """Check files against their checksums, and the layout against the counts; no image is decoded.

    Exit 1 where something is wrong, or a dataset that was named is not there.
    """
    wrong = False
    for config in _configs(names, plugins):
        try:
            line, there = _verified(config, data)
            wrong |= not there and "all" not in names
        except UserError as error:
            line, wrong = f"wrong: {str(error).removeprefix(f'dataset {config.key}: ')}", True
        click.echo(f"{config.key}: {line}")
    if wrong:
        sys.exit(1)


def _verified(config: DatasetConfig, data_dir: Path) -> tuple[str, bool]:
    """What to say of a dataset that is not wrong, and whether it is there.

    Raises:
        UserError: what is wrong.
    """
    from bench.data.dataset import READERS, availability
    from bench.data.download.lock import checksums, difference, read_lock
    from bench.data.prepare.counts import check

    lock = read_lock(data_dir)
    checked: list[str] = []
    unknown: list[str] = []
    for file in config.files:
        path, entry = data_dir / "downloads" / file.name, lock.get(file.name)
        if not path.exists():
            continue
        problem = difference(checksums(path), file, entry)
        if problem is not None:
            raise UserError(f"{path}: {problem}; move it away, then: clmerge data get {config.key}")
        known = entry is not None or file.sha256 or file.md5
        (checked if known else unknown).append(file.name)
    why_not = availability(config, data_dir)
    if why_not is not None:
        return f"not there: {why_not}", False
    check(config, READERS[config.layout].read(config, data_dir))
    told = [f"ok: {config.classes} classes, {config.train:,} training and {config.test:,} test images"]
    if checked:
        told.append(f"checksum right: {', '.join(checked)}")
    if unknown:
        told.append(f"no checksum known: {', '.join(unknown)}")
    archives = [file.name for file in config.files if file.extract and file.name not in (*checked, *unknown)]
    if archives:
        told.append(f"no archive to check ({', '.join(archives)})")
    return "; ".join(told), True


@data.command()
@NAMES
@PROTOCOL
@common
def prepare(data: Path, plugins: tuple[Path, ...], names: tuple[str, ...], protocol: str) -> None:
    """Decode and resize once, as a protocol shows the images; runs do it themselves where it was not done.

    \b
    clmerge data prepare cifar10 omniglot
    """
    from bench.data.dataset import load_dataset, prepared_key

    for config in _there(names, plugins, data):
        image, start = _image(config, protocol), time.perf_counter()
        folder = data / "prepared" / f"{config.key}-{prepared_key(config, image)}"
        before = folder.stat().st_ino if folder.exists() else None
        dataset = load_dataset(config, data, image)
        seconds, many = time.perf_counter() - start, config.train + config.test
        fresh = folder.stat().st_ino != before
        took = f"{seconds:.1f} s, {many / seconds:,.0f} images/s" if fresh else "was there already"
        channels, side, _ = dataset.train_images.shape[1:]
        click.echo(
            f"{config.key}: {config.train:,} training and {config.test:,} test images of {side}x{side}x{channels}, "
            f"{config.classes} classes; {took}\n  {folder}\n  digest {dataset.digest}"
        )


@data.command()
@click.argument("name")
@click.option("--tasks", type=click.IntRange(1), help="Number of tasks.  [default: the dataset's first]")
@click.option("--class-order-seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: reports/out/sheets]")
@PROTOCOL
@common
def show(
    data: Path, plugins: tuple[Path, ...], name: str, tasks: int | None,
    class_order_seed: int, out: Path | None, protocol: str,
) -> None:  # fmt: skip
    """Draw contact sheets (PNG): one of all classes, and one a task with training and test images of each class.

    \b
    clmerge data show cifar10 --tasks 5
    """
    from bench.data.dataset import load_dataset
    from bench.data.scenario import scenario_of
    from bench.data.sheet import write_sheets

    for config in _there((name,), plugins, data):
        kind = for_dataset(load_protocol(protocol), config.key).class_order
        scenario, n_tasks = scenario_of(config), tasks or config.tasks[0]
        scenario.check(config, n_tasks)
        order = {"classes": "class order", "domains": "domain order"}[scenario.orders]
        note = f"{order} seed {class_order_seed}" if kind in ("mt19937", "pcg64") else f"{order} of the protocol"
        cuts = scenario.cuts(config.classes, n_tasks, class_order_seed, kind)
        dataset = load_dataset(config, data, _image(config, protocol))
        for file in write_sheets(dataset, cuts, note, out or Path("reports/out/sheets")):
            click.echo(file)


def _configs(names: tuple[str, ...], plugins: tuple[Path, ...]) -> Iterator[DatasetConfig]:
    """The datasets that are asked for; a wrong name is found before the first is done."""
    folders = dataset_folders(plugins)
    if "all" in names:
        found = [path.stem for path in yaml_files("datasets", folders)]
        names = tuple(dict.fromkeys([*found, *(name for name in names if name != "all")]))
    yield from [load_dataset_config(name, folders) for name in names]


def _there(names: tuple[str, ...], plugins: tuple[Path, ...], data_dir: Path) -> Iterator[DatasetConfig]:
    """The datasets that are asked for and can be read.

    Raises:
        UserError: one that was named is not on this machine.
    """
    from bench.data.dataset import availability

    for config in _configs(names, plugins):
        why_not = availability(config, data_dir)
        if why_not is None:
            yield config
        elif "all" not in names:
            raise UserError(f"dataset {config.key!r} is not on this machine: {why_not}")


def _image(config: DatasetConfig, protocol: str) -> ImageConfig | None:
    return for_dataset(load_protocol(protocol), config.key).image
