"""Where a backbone's weights come from, and what is said where they cannot be had."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.common.errors import UserError
from bench.config.files import load_protocol
from bench.config.schema import ImageConfig, ProtocolConfig
from bench.model.backbone import Backbone
from bench.model.pretrained_files import check_weights, find_weights, weights_digest

TAGGED = "vit_tiny_patch16_224.augreg_in21k"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
IMAGE = ImageConfig(size=32, mean=[0.5] * 3, std=[0.5] * 3)


def protocol(model: str = TAGGED, options: dict[str, Any] | None = None, **backbone: Any) -> ProtocolConfig:
    return ProtocolConfig.model_validate(
        {
            "key": "mine", "title": "mine", "train": {"epochs": 1, "lr": 1e-3, "head_lr": 1e-3},
            "backbone": {"model": model, "options": {**SMALL, **(options or {})}, **backbone},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> nn.Module:
    """timm's model with its classifier of 7 classes."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=7, **SMALL).eval()


@pytest.fixture
def file(whole: nn.Module, tmp_path: Path) -> Path:
    save_file(whole.state_dict(), tmp_path / f"{TAGGED}.safetensors")
    return tmp_path / f"{TAGGED}.safetensors"


@pytest.fixture
def x() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache of the hub."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, whole: nn.Module) -> Path:
    """The file as the hub's client lays it down."""
    snapshot = cache / f"models--timm--{TAGGED}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    save_file(whole.state_dict(), snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


# ---- what is loaded ------------------------------------------------------------------------------------------------
def features(whole: nn.Module, pixels: Tensor) -> Tensor:
    return whole.forward_head(whole.forward_features(pixels), pre_logits=True)


@pytest.mark.parametrize("name", [f"{TAGGED}.safetensors", "model.safetensors", "model.pth", "pytorch_model.bin"])
def test_a_file_or_its_folder_gives_timms_features(name: str, whole: nn.Module, tmp_path: Path, x: Tensor) -> None:
    if name.endswith("safetensors"):
        save_file(whole.state_dict(), tmp_path / name)
    else:
        torch.save({"model": whole.state_dict(), "epoch": 3}, tmp_path / name)
    for weights in (tmp_path / name, tmp_path):
        backbone = Backbone(protocol(weights=str(weights)), IMAGE)
        with torch.no_grad():
            assert torch.equal(backbone.features(backbone.pretrained, x), features(whole, backbone.pixels(x)))
        assert backbone.dim == 24
        assert not any(n.startswith("head") for n, _ in backbone.module.named_parameters())


def test_the_hubs_cache_is_used_without_a_network(alone: Path, whole: nn.Module, x: Tensor) -> None:
    file = cached(alone, whole)
    told = protocol(pretrained=True)
    check_weights(told)
    assert find_weights(told) == file
    backbone = Backbone(told, IMAGE)
    with torch.no_grad():
        assert torch.equal(backbone.features(backbone.pretrained, x), features(whole, backbone.pixels(x)))


def test_a_file_stands_above_the_cache(alone: Path, file: Path) -> None:
    assert find_weights(protocol(pretrained=True, weights=str(file))) == file
    assert find_weights(protocol()) is None


def test_outputs_asked_for_are_the_features(file: Path, whole: nn.Module, x: Tensor) -> None:
    """CLIP's projection is what timm calls the classifier."""
    told = protocol(options={"num_classes": 7}, weights=str(file)).model_copy(update={"adapter": "full"})
    backbone = Backbone(told, IMAGE)
    assert backbone.dim == 7
    assert backbone.classifiers == ()
    assert {"head.weight", "head.bias"} <= set(backbone.pretrained.layout.names)
    with torch.no_grad():
        assert torch.equal(backbone.features(backbone.pretrained, x), whole(backbone.pixels(x)))
    with pytest.raises(UserError, match=r"backbone\.options\.num_classes: 5, but .* has 7"):
        Backbone(protocol(options={"num_classes": 5}, weights=str(file)), IMAGE)


def test_openais_clip_has_its_own_nonlinearity_and_projection() -> None:
    told = load_protocol("magmax", {"backbone.pretrained": False})
    told = told.model_copy(
        update={"backbone": told.backbone.model_copy(update={"options": {**told.backbone.options, "depth": 1}})}
    )
    backbone = Backbone(told, IMAGE.model_copy(update={"size": 224}))
    assert backbone.dim == 512
    assert type(backbone.module.get_submodule("blocks.0.mlp.act")).__name__ == "QuickGELU"


def test_open_clips_own_files_give_open_clips_embeddings(tmp_path: Path, x: Tensor) -> None:
    """A CLIP with both towers, as open_clip saves it: its image tower and projection are taken out of it."""
    model = pytest.importorskip("open_clip.model")
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
    words = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    clip = model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=words, quick_gelu=True).eval()
    save_file({n: t.contiguous() for n, t in clip.state_dict().items()}, tmp_path / "model.safetensors")
    options = {"embed_dim": 64, "depth": 2, "num_heads": 2, "act_layer": "quick_gelu", "num_classes": 16}
    told = protocol("vit_base_patch16_clip_224.openai", options=options, weights=str(tmp_path))
    backbone = Backbone(told, IMAGE)
    with torch.no_grad():
        expected = clip.encode_image(backbone.pixels(x))
        torch.testing.assert_close(backbone.features(backbone.pretrained, x), expected, rtol=1e-5, atol=1e-5)


def test_weights_saved_for_another_input_size_are_resized(whole: nn.Module, file: Path) -> None:
    backbone = Backbone(protocol(options={"img_size": 48}, weights=str(file)), IMAGE.model_copy(update={"size": 48}))
    assert backbone.module.state_dict()["pos_embed"].shape == (1, 37, 24)


# ---- mistakes ------------------------------------------------------------------------------------------------------
def test_a_file_of_another_model_or_with_names_missing_does_not_fit(file: Path, whole: nn.Module) -> None:
    with pytest.raises(UserError, match=r"does not fit vit_tiny_patch16_224\.augreg_in21k: size mismatch for"):
        Backbone(protocol(options={"embed_dim": 48}, weights=str(file)), IMAGE)
    save_file({n: t for n, t in whole.state_dict().items() if "fc1" not in n}, file)
    with pytest.raises(UserError, match=r"does not fit .*Missing key.* \"blocks\.0\.mlp\.fc1\.weight\""):
        Backbone(protocol(weights=str(file)), IMAGE)


def test_nothing_is_unpickled(tmp_path: Path, whole: nn.Module) -> None:
    torch.save({"model": whole}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"holds no plain tensors .*save them as safetensors"):
        Backbone(protocol(weights=str(tmp_path)), IMAGE)


def test_a_damaged_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{file} holds no plain tensors"):
        Backbone(protocol(weights=str(file)), IMAGE)


def test_another_checksum_is_an_error_and_a_changed_file_is_seen(file: Path) -> None:
    digest = weights_digest(protocol(weights=str(file)))
    check_weights(protocol(weights=str(file), sha256=digest))
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"backbone\.sha256: .* has another checksum"):
        check_weights(protocol(weights=str(file), sha256=digest))


def test_a_bare_name_lists_its_tags(alone: Path) -> None:
    with pytest.raises(UserError, match=r"name them in full: vit_tiny_patch16_224\.augreg_in21k, .*_ft_in1k"):
        check_weights(protocol("vit_tiny_patch16_224", pretrained=True))


def test_an_unknown_tag_is_an_error_even_for_random_weights() -> None:
    with pytest.raises(
        UserError, match=r"unknown timm model 'vit_tiny_patch16_224\.augrag_in21k'; did you mean .*augreg_in21k'"
    ):
        Backbone(protocol("vit_tiny_patch16_224.augrag_in21k"), IMAGE)


def test_a_folder_without_the_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"the folder {tmp_path} holds no {TAGGED}\.safetensors"):
        check_weights(protocol(weights=str(tmp_path)))


def test_without_a_network_one_line_says_which_file_goes_where(alone: Path) -> None:
    with pytest.raises(UserError) as caught:
        check_weights(protocol(pretrained=True))
    line = str(caught.value)
    assert "\n" not in line
    for part in (f"https://huggingface.co/timm/{TAGGED}", "model.safetensors", f"FOLDER/{TAGGED}.safetensors",
                 "backbone.weights=FOLDER", "backbone.pretrained=false"):  # fmt: skip
        assert part in line


def test_the_hub_is_not_asked_when_its_client_is_offline(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="set to be offline"):
        check_weights(protocol(pretrained=True))


def test_a_repository_that_is_not_there_is_told_apart(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(EntryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")

    def missing(*_: Any, **__: Any) -> None:
        raise Missing

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", missing)
    with pytest.raises(UserError, match=rf"the hub has no timm/{TAGGED}; name them in full"):
        check_weights(protocol(pretrained=True))


def test_a_hub_that_has_the_file_is_left_to_the_run(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, **_: asked.append(url))
    check_weights(protocol(pretrained=True))
    assert len(asked) == 1
    assert asked[0].endswith(f"timm/{TAGGED}/resolve/main/model.safetensors")

    def broken(*_: Any) -> None:
        raise ConnectionResetError("half way")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(UserError, match="the download failed: ConnectionResetError"):
        find_weights(protocol(pretrained=True))


def test_checking_loads_neither_torch_nor_timm(file: Path) -> None:
    code = f"""if True:
        import sys
        from bench.config.files import load_protocol
        from bench.common.errors import UserError
        from bench.model.pretrained_files import check_weights
        check_weights(load_protocol("pm", {{"backbone.weights": {str(file)!r}}}))
        check_weights(load_protocol("pm", {{"backbone.pretrained": False}}))
        assert not {{"torch", "timm", "torchvision"}} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
