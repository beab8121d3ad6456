"""``clmerge pretrain``."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands.options import common
from bench.common.errors import UserError
from bench.registry import dataset_folders


@click.command()
@click.option("--protocol", default="embedded_pretrain", show_default=True)
@click.option("--dataset", default="glyphs_base", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The safetensors file to write.")
@common
def pretrain(data: Path, plugins: tuple[Path, ...], protocol: str, dataset: str, seed: int, out: Path) -> None:
    """Pre-train a small backbone: the recipe behind the committed weights.

    \b
    clmerge pretrain --out my_vit.safetensors
    """
    from bench.config.files import load_dataset_config, load_protocol
    from bench.data.dataset import availability

    recipe, config = load_protocol(protocol), load_dataset_config(dataset, dataset_folders(plugins))
    why_not = availability(config, data)
    if why_not:
        raise UserError(f"dataset {dataset!r} is not on this machine: {why_not}")
    from bench.run.pretrain import pretrain as run_pretraining

    told = run_pretraining(recipe, config, data, seed, out)
    measured = f"{told['accuracy']:.1f} % on the test part of {dataset}, {told['seconds']:.0f} s"
    click.echo(f"{out}: {told['parameters']:,} parameters, {measured}\nsha256 {told['sha256']}")
