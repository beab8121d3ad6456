"""``clmerge text``: the class rows of a zero-shot head."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands.options import common
from bench.registry import dataset_folders


@click.command()
@click.option("--dataset", required=True, help="Whose class names.")
@click.option("--protocol", default="magmax", show_default=True, help="How the dataset is prepared.")
@click.option("--model", default="ViT-B-16-quickgelu", show_default=True, help="open_clip's name of the model.")
@click.option("--weights", default="openai", show_default=True, help="open_clip's tag, or a file.")
@click.option("--templates", type=click.Path(path_type=Path), help="YAML of phrases by dataset instead of ours.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="safetensors file to write.")
@common
def text(
    data: Path,
    plugins: tuple[Path, ...],
    quiet: bool,
    dataset: str,
    protocol: str,
    model: str,
    weights: str,
    templates: Path | None,
    out: Path,
) -> None:
    """Embed a dataset's class names with CLIP's text encoder for a zero-shot head (needs open_clip).

    \b
    clmerge text --dataset cifar100 --out rows/cifar100.safetensors
    clmerge run --protocol magmax --datasets cifar100 --protocol-set head.text=$PWD/rows/cifar100.safetensors
    """
    from bench.config.files import for_dataset, load_dataset_config, load_protocol
    from bench.data.dataset import load_dataset
    from bench.model import clip_text as zero_shot

    config = load_dataset_config(dataset, dataset_folders(plugins))
    phrases = zero_shot.templates(config.key, templates or zero_shot.TEMPLATES)
    encode, scale = zero_shot.open_clip_encoder(model, weights)
    image = for_dataset(load_protocol(protocol), config.key).image
    names = load_dataset(config, data, image).class_names
    zero_shot.write_rows(out, zero_shot.class_rows(encode, scale, names, phrases), names, f"{model} {weights}")
    if not quiet:
        click.echo(f"{out}: {len(names)} rows, {len(phrases)} phrases a class")
