"""PEFT adapters given to ``clmerge merge``: folded as PEFT does, or refused with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.cli import cli
from bench.common.errors import UserError
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from bench.offline import Offline, merge
from bench.offline.checkpoints import fold_adapter
from tests.helpers.toy import rule

Model = dict[str, Tensor]
THETA_0 = {"a.weight": torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), "b.weight": torch.ones(5, 4)}


def saved(folder: Path, tensors: Model) -> Path:
    save_file(tensors, folder / "base.safetensors")
    return folder / "base.safetensors"


def clmerge(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["merge", *map(str, arguments)])


OPTIONS = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_ratio": 2,
           "class_token": False, "global_pool": "avg", "num_classes": 3}  # fmt: skip


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", pretrained=False, **OPTIONS)


def adapter(folder: Path, seed: int = 1, **told: Any) -> Model:
    """Writes a trained-looking adapter; PEFT's own idea of the folded model."""
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": ["qkv"], **told})
    wrapped = peft.get_peft_model(vit(), config)
    torch.manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    return {n: x.detach().clone() for n, x in wrapped.merge_and_unload().state_dict().items()}


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"use_rslora": True, "r": 4},
        {"target_modules": ["qkv", "fc1"], "rank_pattern": {"blocks.1.mlp.fc1": 3}, "alpha_pattern": {"fc1": 5}},
        {"target_modules": ["qkv", "proj"]},  # the patch embedding, a convolution, is called proj too
        {"modules_to_save": ["head"], "bias": "lora_only"},
        {"init_lora_weights": "gaussian"},
    ],
    ids=lambda told: " ".join(told) or "plain",
)
def test_an_adapter_is_folded_as_peft_does(tmp_path: Path, told: dict[str, Any]) -> None:
    theirs, base = adapter(tmp_path / "lora", **told), vit().state_dict()
    served = merge("last", base, [tmp_path / "lora"])
    assert list(served) == list(base)
    changed = {name for name in base if not torch.equal(theirs[name], base[name])}
    for name in base:
        torch.testing.assert_close(served[name], theirs[name], rtol=0, atol=1e-6)
        assert name in changed or torch.equal(served[name], base[name])
    assert (
        set(fold_adapter(tmp_path / "lora", base)) == set(Offline("last", base, [tmp_path / "lora"]).names) == changed
    )


def test_fan_in_fan_out_is_transposed(tmp_path: Path) -> None:
    (tmp_path / "lora").mkdir()
    A, B = torch.randn(2, 6), torch.randn(5, 2)
    save_file({"base_model.model.a.lora_A.weight": A, "base_model.model.a.lora_B.weight": B},
              tmp_path / "lora" / "adapter_model.safetensors")  # fmt: skip
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "fan_in_fan_out": True}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(told))
    served = merge("last", THETA_0, [tmp_path / "lora"])
    torch.testing.assert_close(served["a.weight"], THETA_0["a.weight"] + 1.5 * (B @ A).T)
    save_file({"base_model.model.b.lora_A.weight": A, "base_model.model.b.lora_B.weight": B},
              tmp_path / "lora" / "adapter_model.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"does not fit b\.weight"):
        merge("last", THETA_0, [tmp_path / "lora"])


def test_only_what_adapters_adapt_is_merged(tmp_path: Path) -> None:
    base = vit().state_dict()
    folded = [adapter(tmp_path / f"lora_{i}", i) for i in (1, 2)]
    path = saved(tmp_path, base)
    done = clmerge("--method", "ties:density=0.5", "--pretrained", path, "--tasks", tmp_path / "lora_1",
                   tmp_path / "lora_2", "--json", "-o", tmp_path / "out.safetensors")  # fmt: skip
    names = [name for name in base if "qkv.weight" in name]
    assert json.loads(done.stdout)["merged"] == len(names) == 2
    theta_0 = Weights.of({n: base[n] for n in names})
    expected = merge_recorded(rule("ties", density=0.5), theta_0,
                              [Weights.of({n: f[n] for n in names}) for f in folded])[-1]  # fmt: skip
    served = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(Weights.of({n: served[n] for n in names}).vector, expected.vector, rtol=0, atol=1e-6)
    assert all(torch.equal(served[n], base[n]) for n in base if n not in names)
    # Beside a whole checkpoint all tensors are merged, and an adapter stands for the whole model.
    both = merge("average", base, [tmp_path / "lora_1", folded[1]])
    assert len(Offline("average", base, [tmp_path / "lora_1", folded[1]]).names) == len(base)
    mean = (folded[0]["blocks.0.attn.qkv.weight"] + folded[1]["blocks.0.attn.qkv.weight"]) / 2
    torch.testing.assert_close(both["blocks.0.attn.qkv.weight"], mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora is not folded here; merge_and_unload it"),
        ({"lora_bias": True}, "lora_bias is not folded"),
        ({"peft_type": "IA3"}, "a IA3 adapter; only LORA is folded"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changed the base weights"),
        ({"peft_type": None}, "a None adapter"),
        ("{", "adapter_config.json: not a PEFT configuration"),
        ("key:base_model.model.head.lora_embedding_A", "only LoRA of linear and convolution layers is folded"),
        ("key:base_model.model.nowhere.lora_A.weight", "nowhere.weight: lora_A or lora_B is missing"),
        ("key:base_model.model.nowhere.weight", "it has besides nowhere.weight"),
        ("bin", "adapter_model.bin is a pickle, never loaded"),
    ],
)
def test_an_adapter_that_is_not_folded_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    folder = tmp_path / "lora"
    adapter(folder)
    if isinstance(change, dict):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
    elif change.startswith("key:"):
        tensors = load_file(folder / "adapter_model.safetensors")
        save_file(tensors | {change[4:]: torch.ones(2, 2)}, folder / "adapter_model.safetensors")
    elif change == "bin":
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    else:
        (folder / "adapter_config.json").write_text(change)
    path = saved(tmp_path, vit().state_dict())
    done = clmerge("--method", "average", "--pretrained", path, "--tasks", folder,
                   "-o", tmp_path / "out.safetensors")  # fmt: skip
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert told in done.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    with pytest.raises(UserError, match=r"adapts blocks\.0\.attn\.qkv\.weight, which pretrained does not have"):
        merge("average", THETA_0, [tmp_path / "lora"])
    with pytest.raises(UserError, match="a PEFT adapter can only be a task"):
        merge("average", tmp_path / "lora", [THETA_0])
