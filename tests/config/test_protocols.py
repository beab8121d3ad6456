"""The presets: that they load and apply to every dataset, and that they say what their papers' code does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from bench.cli import cli
from bench.common.paths import DATASETS, PROTOCOLS
from bench.config.files import for_dataset, load_dataset_config, load_protocol, shown_image
from bench.model.backbone import Backbone
from bench.model.heads import Head
from bench.run.train import _rate

PRESETS = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))
REAL = ["pm", "pm_repro", "pm_short", "pm_t1", "pm_dino", "magmax", "magmax_auto"]
RANDOM = {"backbone.pretrained": False}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_loads_and_its_overrides_name_datasets(preset: str) -> None:
    protocol = load_protocol(preset)
    known = {path.stem for path in DATASETS.glob("*.yaml")}
    for dataset in protocol.per_dataset:
        assert dataset in known
        for_dataset(protocol, dataset)
    assert protocol.title


@pytest.mark.parametrize("preset", REAL)
def test_presets_of_papers_show_any_dataset_at_224(preset: str) -> None:
    protocol = load_protocol(preset)
    for dataset in (load_dataset_config(path.stem, []) for path in DATASETS.glob("*.yaml")):
        image = shown_image(for_dataset(protocol, dataset.key), dataset)
        assert (image.size, image.channels, len(image.mean), len(image.std)) == (224, 3, 3, 3)


def test_variants_differ_from_their_base_in_what_they_say() -> None:
    def changed(preset: str, base: str) -> dict[str, Any]:
        mine, theirs = (load_protocol(name).model_dump() for name in (preset, base))
        words = {"key", "title", "about", "base", "inferred", "per_dataset"}
        return {
            f"{name}.{key}" if isinstance(value, dict) else name: value[key] if isinstance(value, dict) else value
            for name, value in mine.items()
            if name not in words and value != theirs[name]
            for key in (value if isinstance(value, dict) else [name])
            if not isinstance(value, dict) or value[key] != theirs[name][key]
        }

    assert changed("pm_repro", "pm") == {"class_order": "pcg64", "train.precision": "fp16"}
    assert changed("pm_short", "pm") == {"train.passes": 1}
    assert changed("pm_t1", "pm") == {"train.temperature": 1.0}
    assert set(changed("pm_dino", "pm")) == {"backbone.model", "image.mean", "image.std"}
    assert changed("magmax_auto", "magmax") == {"train.warmup_steps": "auto"}


def test_settings_of_the_papers() -> None:
    pm, cifar, sketches = (
        for_dataset(load_protocol("pm"), name) for name in ("imagenet_r", "cifar100", "domainnet200")
    )
    assert (pm.lora.rank, pm.lora.targets, pm.train.lr, pm.train.head_lr, pm.train.batch) == (
        10,
        ("k", "v"),
        1e-3,
        1e-2,
        256,
    )
    assert (pm.train.epochs, cifar.train.epochs, sketches.train.epochs) == (10, 10, 5)
    assert (pm.augment.auto, cifar.augment.auto, sketches.augment.auto) == ("imagenet", "cifar10", "imagenet")
    assert not pm.augment.flip
    image, small = pm.image, cifar.image
    assert image is not None
    assert small is not None
    assert (image.resized, image.mode, image.interpolation) == (256, "squash", "bilinear")
    assert (small.resized, small.interpolation) == (224, "bicubic")
    assert {"train.passes", "train.temperature"} <= set(pm.inferred) <= set(load_protocol("pm_repro").inferred)
    magmax, cars = (for_dataset(load_protocol("magmax"), name) for name in ("cifar100", "cars"))
    assert (magmax.train.epochs, cars.train.epochs, magmax.train.batch) == (10, 30, 128)
    assert (magmax.train.lr, magmax.train.weight_decay, magmax.train.clip) == (1e-5, 0.1, 1.0)
    assert (magmax.adapter, magmax.head.kind, magmax.train.precision) == ("full", "zero_shot", "fp32")


def test_rates_of_the_papers() -> None:
    pm, magmax = load_protocol("pm").train, load_protocol("magmax").train
    assert [_rate(pm, step, 1000) for step in (0, 499, 500, 799, 800, 999)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )
    assert [_rate(magmax, step, 1000) for step in (0, 249, 499)] == pytest.approx([0.002, 0.5, 1])
    assert _rate(magmax, 399, 400) == pytest.approx(0.8)  # the task ends while the rate still rises
    assert _rate(load_protocol("magmax_auto").train, 39, 400) == pytest.approx(1)


def test_statistics_are_the_checkpoints_own() -> None:
    import timm

    for preset in REAL:
        protocol = load_protocol(preset)
        told = timm.get_pretrained_cfg(protocol.backbone.model)
        assert protocol.image is not None
        assert (tuple(protocol.image.mean), tuple(protocol.image.std)) == (told.mean, told.std)
        assert told.input_size == (3, protocol.image.size, protocol.image.size)


@pytest.mark.parametrize("preset", ["pm", "magmax"])
def test_one_block_of_the_model_takes_a_training_step(preset: str) -> None:
    """Of the real width; all blocks would take a CPU minutes (benchmarks/vit_b.py does that)."""
    options = {**load_protocol(preset).backbone.options, "depth": 1}
    protocol = load_protocol(preset, {**RANDOM, "backbone.options": options})
    assert protocol.image is not None
    backbone = Backbone(protocol, protocol.image)
    x = torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    adapter = backbone.adapter(backbone.pretrained, "AB", 0)
    head = Head(torch.randn(4, backbone.dim), torch.zeros(4), normalise=preset == "magmax")
    features = backbone.forward(adapter.weights(), backbone.transform.augmented(x, 0))
    head(features).logsumexp(1).sum().backward()
    assert features.shape == (2, {"pm": 768, "magmax": 512}[preset])
    gradients = [p.grad for p in adapter.parameters]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(bool(g.any()) for g in gradients if g is not None)
    adapted = set(backbone.pretrained.layout.names)
    if preset == "pm":
        assert adapted == {"blocks.0.attn.qkv.k.weight", "blocks.0.attn.qkv.v.weight"}
    else:
        assert {"head.weight", "pos_embed", "blocks.0.attn.qkv.q.bias", "norm_pre.weight"} <= adapted


def test_without_weights_the_command_line_says_so_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for command in ("plan", "run"):
        where = ["--results", str(tmp_path / "results"), "--data", str(tmp_path / "data"), "--datasets", "digits"]
        done = CliRunner().invoke(cli, [command, *where, "--methods", "finetune", "--protocol", "pm"])
        assert done.exit_code == 2
        assert len(done.output.strip().splitlines()) == 1
        assert "vit_base_patch16_224.augreg2_in21k_ft_in1k.safetensors" in done.output
    where += ["--methods", "finetune", "--protocol", "pm", "--protocol-set", "backbone.pretrained=false"]
    assert CliRunner().invoke(cli, ["plan", *where]).exit_code == 0
