"""Every family of timm models through the harness: trained by LoRA and in full, merged, exported, replayed.

Each family (a module of timm) stands with a small model, made smaller where it takes options, with random weights, at
the smallest side that it takes. Two tasks of a few random images are run by ``Session`` itself with the weights
kept; timm's own ``load_state_dict`` (strict) reads what was served, and must give the harness's features; the kept
folder is replayed, and must give the run's counts. A model that is refused is refused in one line before training.

Run with: python -m benchmarks.backbones [--families beit,resnet] [--out FOLDER] [--write docs/backbones.md]
Finished families are read from FOLDER, so that an interrupted walk goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from bench.common.errors import UserError
from bench.config.files import load_protocol, shown_image
from bench.config.schema import ImageConfig
from bench.data.dataset import load_dataset
from bench.model.adapters.adapter import common_layers
from bench.model.backbone import META, Backbone
from bench.plan.replayed import Folder, replay_cell
from bench.records.record import read_records
from bench.run.task_models import check_folder
from bench.session import Session

MEAN, STD = [0.5] * 3, [0.25] * 3
KEPT = ("pretrained", "served_2")  #: files of a run's kept weights that are compared
SIDES = (32, 64, 96, 128, 192, 224, 256, 384, 512)  #: pixels, tried in this order
#: models that are too large as they are, and what makes them small; others of their family take the same
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "deepseek_vit": ("deepseek_vit_412m", {"embed_dim": 64, "depth": 2, "num_heads": 2}),
    "gemma4_vit": ("gemma4_vit_167m", {"depth": 2}),
    "naflexvit": ("naflexvit_base_patch16_gap", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
    "qwen3_vit": ("qwen3_vit_88m", {"embed_dim": 64, "depth": 2, "num_heads": 2}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2}),
}
SMALL_NAME = re.compile(
    r"tiny|xxs|_ti_|_ti16|nano|atto|_035|_050|_b0|18|_002|_s0|_m0|_m1$|_t0|_t8|_xs|small|_t$|pico|slim"
)


@dataclass
class Family:
    """What became of one family.

    Attributes:
        works: by adapter, "" where all worked, else the line that refuses it.
        adapted: what LoRA was put on.
    """

    family: str
    model: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    side: int = 0
    parameters: int = 0
    adapted: str = ""
    works: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def smallest(family: str) -> tuple[str, dict[str, Any]]:
    """The smallest of a family's first few models and the options that shrink it: counted without making values."""
    if family in SMALL:
        return SMALL[family]
    names = timm.list_models(module=family)
    tests = [name for name in names if name.startswith("test_")]
    sizes = {}
    for name in (tests or [name for name in names if SMALL_NAME.search(name)] or names)[:4]:
        try:
            with torch.device(META):
                model = timm.create_model(name, num_classes=0)
        except Exception:  # asked again, and told, where it is built for a run
            continue
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    return (min(sizes, key=sizes.__getitem__) if sizes else names[0]), {}


def settings(told: Family, adapter: str, lora: dict[str, Any], weights: Path | None = None) -> dict[str, Any]:
    """A protocol of one step a task."""
    file = {"weights": str(weights)} if weights else {}
    return {
        "title": "One step of every family",
        "backbone": {"model": told.model, "options": told.options, **file},
        "adapter": adapter,
        "lora": {"rank": 2, **lora},
        "train": {"epochs": 1, "batch": 4, "lr": 0.01, "head_lr": 0.01, "warmup_steps": 0},
        "eval_batch": 8, "fisher_samples": 4,
    }  # fmt: skip


def fit(folder: Path, told: Family) -> Backbone:
    """The model without values, at the first side and with the options that it takes.

    Raises:
        UserError: it takes none; what the last one was refused with.
    """
    options, refused = told.options, UserError("no side tried")
    for side in SIDES:
        for more in ({"img_size": side}, {}):
            told.side, told.options = side, options | more
            try:
                return backbone(folder, told, "full", {})
            except UserError as error:
                refused = error
    raise refused


def backbone(folder: Path, told: Family, adapter: str, lora: dict[str, Any]) -> Backbone:
    """The model under that protocol, which is written to a file, without values."""
    protocol = load_protocol(written(folder / "walk.yaml", settings(told, adapter, lora)))
    return Backbone(protocol, ImageConfig(size=told.side, mean=MEAN, std=STD), META)


def random_weights(path: Path, told: Family) -> Path:
    """A file of weights in which nothing is zero, so that a gradient reaches every layer (many residual branches begin
    at zero), and no statistic of BatchNorm is what a new model has.
    """
    torch.manual_seed(0)
    model = timm.create_model(told.model, num_classes=0, **told.options)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and not bool(tensor.any()):
            tensor.normal_(std=0.1)
    save_file({name: x.contiguous().clone() for name, x in model.state_dict().items()}, path)
    return path


def written(path: Path, told: dict[str, Any]) -> str:
    """The path of a YAML file with that in it."""
    path.write_text(yaml.safe_dump(told))
    return str(path)


def random_images(folder: Path, side: int) -> str:
    """A dataset of four classes, two training images and two test images each."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 2)
    arrays: dict[str, Any] = {
        f"x_{split}": rng.integers(0, 256, (8, side, side, 3), dtype=np.uint8) for split in ("train", "test")
    }
    np.savez(folder / "images.npz", **arrays, y_train=labels, y_test=labels)
    told = {
        "title": "Random images", "layout": "arrays", "options": {"path": str(folder / "images.npz")}, "classes": 4,
        "train": 8, "test": 8, "tasks": [2], "duplicates": None,
        "image": {"size": side, "channels": 3, "mean": MEAN, "std": STD},
    }  # fmt: skip
    return written(folder / "random.yaml", told)


def walk(family: str) -> Family:
    """One family, in a folder that is deleted afterwards."""
    began, told = time.perf_counter(), Family(family)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told.model, told.options = smallest(family)
        try:
            model = fit(folder, told)
        except UserError as error:
            told.works = dict.fromkeys(("lora", "full"), said(error))
        else:
            told.parameters = model.pretrained.vector.numel()
            dataset, weights = random_images(folder, told.side), random_weights(folder / "random.safetensors", told)
            told.adapted, lora = adapted(folder, told, model)
            for adapter, options in (("lora", lora), ("full", {})):
                protocol = written(folder / f"{adapter}.yaml", settings(told, adapter, options, weights))
                told.works[adapter] = tried(folder / adapter, dataset, protocol)
    told.seconds = round(time.perf_counter() - began, 1)
    return told


def adapted(folder: Path, told: Family, model: Backbone) -> tuple[str, dict[str, Any]]:
    """What LoRA is put on, in words and as its section: the default targets where the model has them."""
    pattern = common_layers(model.module)
    choices: dict[str, dict[str, Any]] = {
        "k, v": {},
        "q, k, v": {"targets": ["q", "k", "v"]},
        f"`{pattern}`": {"modules": pattern},
    }
    for words, lora in choices.items():
        try:
            backbone(folder, told, "lora", lora)
        except UserError:
            continue
        return words, lora
    return f"`{pattern}`", {"modules": pattern}


def tried(folder: Path, dataset: str, protocol: str) -> str:
    """ "" where the run, timm's reading and the replay all work, else what does not."""
    session = Session(
        datasets=dataset, tasks=2, methods=["average"], seeds=1, protocol=protocol, results=folder,
        data=folder / "data", executor="local", keep_weights=True, use_cache=False,
    )  # fmt: skip
    try:
        outcome = session.run()
    except UserError as error:
        return said(error)
    if outcome.failed:
        return f"TRAINING FAILED: {next(iter(outcome.failed.values()))}"
    [kept] = folder.glob("runs/*/weights")
    return exported(session, kept, dataset) or replayed(folder, kept)


def exported(session: Session, kept: Path, dataset: str) -> str:
    """ "" where timm alone reads what was served and gives the harness's features of it."""
    [cell] = session.grid[0]
    config, files = cell.protocol.backbone, {name: load_file(kept / f"{name}.safetensors") for name in KEPT}
    model = timm.create_model(config.model, num_classes=0, **config.options).eval()
    try:
        model.load_state_dict(files["served_2"], strict=True)
    except RuntimeError as error:
        return f"EXPORT FAILED: {str(error).splitlines()[-1].strip()}"
    ours = Backbone(cell.protocol, shown_image(cell.protocol, cell.dataset))
    first, served = (
        ours.pretrained.with_tensors({n: tensors[n] for n in ours.pretrained.layout.names})
        for tensors in (ours.own_names(files[name]) for name in KEPT)
    )
    if bool((first.vector == served.vector).all()):
        return "TRAINING FAILED: no weight has moved"
    images = torch.from_numpy(load_dataset(cell.dataset, session.execution.data, cell.protocol.image).test_images)
    with torch.inference_mode():
        ours.features(first, images)  # nothing that a model keeps of it may be taken for what is served
        got, expected = ours.features(served, images), model(ours.pixels(images))
    off = float((got - expected).abs().max() / expected.abs().max())
    return f"EXPORT FAILED: timm's features differ by {off:.1g} of the largest" if not off < 1e-3 else ""


def replayed(folder: Path, kept: Path) -> str:
    """ "" where a replay of the kept folder gives the run's counts and weights."""
    [first] = read_records(folder)
    session = Session(results=folder / "again", data=folder / "data", executor="local")
    cell = replay_cell(Folder.read(kept).request("average"), session.registry, session.folders, folder / "data")
    try:
        check_folder(cell)
    except UserError as error:
        return f"REPLAY FAILED: {said(error)}"
    outcome = session.of([cell]).run()
    if outcome.failed:
        return f"REPLAY FAILED: {next(iter(outcome.failed.values()))}"
    [again] = read_records(folder / "again")
    same = [name for name in ("counts", "counts_taskaware") if again[name] != first[name]]
    return f"REPLAY FAILED: other {', '.join(same)}" if same else ""


def said(error: Exception) -> str:
    """A refusal without the place that it stands in here."""
    return str(error).partition(": ")[2] or str(error)


def table(families: Iterable[Family]) -> list[str]:
    """Markdown: a row a family."""
    lines = ["| family | model | pixels | parameters | LoRA on | LoRA | full |", "|---|---|---:|---:|---|---|---|"]
    for told in sorted(families, key=lambda one: one.family):
        works = [("works" if told.works[adapter] == "" else told.works[adapter]) for adapter in ("lora", "full")]
        options = ", ".join(f"{name} {value}" for name, value in told.options.items() if name != "img_size")
        model = f"`{told.model}`" + (f" ({options})" if options else "")
        size = f"{told.parameters / 1e6:.1f} M" if told.parameters else ""
        lines.append(f"| {told.family} | {model} | {told.side or ''} | {size} | {told.adapted} | {' | '.join(works)} |")
    return lines


def write_table(path: Path, lines: list[str]) -> None:
    """Put the table between the marks of the page."""
    head, _, rest = path.read_text().partition("<!-- table -->\n")
    _, _, tail = rest.partition("<!-- end of table -->\n")
    path.write_text("\n".join([f"{head}<!-- table -->", *lines, f"<!-- end of table -->\n{tail}"]))


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", help="some of timm.list_modules(), with commas; default: all")
    parser.add_argument("--out", type=Path, default=Path("backbones"), help="a file a family")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    families = chosen.families.split(",") if chosen.families else timm.list_modules()
    done = []
    for family in families:
        path = chosen.out / f"{family}.json"
        if not path.exists():
            path.write_text(json.dumps(asdict(walk(family))))
        done.append(Family(**json.loads(path.read_text())))
        print(f"{done[-1].seconds:5.1f} s", *table(done[-1:])[2:], flush=True)
    if chosen.write:
        write_table(chosen.write, table(done))
    bad = [one.family for one in done if any("FAILED" in line for line in one.works.values())]
    print(f"{len(done)} families, {sum(one.seconds for one in done):.0f} s; not well: {', '.join(bad) or 'none'}")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
