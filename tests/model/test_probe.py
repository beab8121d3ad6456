"""What one forward pass tells of a model: the size of its features, and whether it can be used at all."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention

from bench.common.errors import UserError
from bench.config.schema import ImageConfig, ProtocolConfig, check
from bench.method.weights import Weights
from bench.model.backbone import Backbone, _other_names, check_model
from bench.model.probe import feature_size

IMAGE = ImageConfig(size=32, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
TINY_VIT = {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 32, 64], "num_heads": [2, 2, 2, 2]}


def protocol(model: str, **fields: Any) -> ProtocolConfig:
    told = {"key": "tiny", "title": "Tiny", "train": {"epochs": 1, "lr": 1, "head_lr": 1}, "adapter": "full", **fields}
    options = told.pop("options", {})
    return check(told | {"backbone": {"model": model, "options": options}}, ProtocolConfig, "tiny")


@pytest.mark.parametrize("model", ["mobilenetv3_small_050", "mobilenetv4_conv_small_050", "test_resnet"])
def test_the_size_of_features_is_the_one_that_a_model_gives_and_not_what_it_says_of_itself(model: str) -> None:
    backbone = Backbone(protocol(model), IMAGE)
    with torch.no_grad():
        features = backbone.module(torch.zeros(2, 3, 32, 32))
    assert backbone.dim == features.shape[1]
    assert Backbone(protocol(model), IMAGE, "meta").dim == backbone.dim
    assert (backbone.dim == backbone.module.num_features) is (model == "test_resnet")


class Lambda(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x, r"^it gives \(2, 3, 32, 32\) for two images, and not a vector each"),
        (lambda x: (x, x), "^it gives tuple for two images"),
        (lambda x: x.mean((0, 2, 3))[None], r"^it gives \(1, 3\) for two images"),
        (lambda x: x @ torch.zeros(5, 5, device=x.device), "^it does not take images of 3 x 32 x 32 .RuntimeError: "),
        (lambda x: dropout(x.flatten(1), 0.5), "^it draws random numbers in evaluation mode .*(dropout|bernoulli)"),
        (lambda x: x.flatten(1) + torch.randn_like(x.flatten(1)), "^it draws random numbers .*randn_like"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(function: Any, message: str, device: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        feature_size(Lambda(function), IMAGE, device, "it")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_and_dropout_that_is_off_draw_nothing(device: str) -> None:
    def attention(x: Tensor) -> Tensor:
        return dropout(scaled_dot_product_attention(x, x, x).flatten(1), 0.5, training=False)

    assert feature_size(Lambda(attention), IMAGE, device, "it") == 3 * 32 * 32


def test_a_model_that_keeps_what_it_made_of_its_weights_follows_new_ones_all_the_same() -> None:
    """TinyViT, LeViT and EfficientFormer keep attention biases from one evaluation to the next."""
    backbone = Backbone(protocol("tiny_vit_5m_224", options=TINY_VIT), IMAGE)
    plain = timm.create_model("tiny_vit_5m_224", num_classes=0, **TINY_VIT).eval()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for seed in (0, 1):
        noise = torch.randn(len(backbone.pretrained.vector), generator=torch.Generator().manual_seed(seed))
        weights = Weights(backbone.pretrained.vector + 0.1 * noise, backbone.pretrained.layout)
        plain.load_state_dict(backbone.export(weights), strict=True)
        plain.train().eval()  # timm forgets what it kept
        with torch.no_grad():
            expected = plain(backbone.pixels(x))
            torch.testing.assert_close(backbone.features(weights, x), expected)
    adapter = backbone.adapter(weights, "AB", 0)
    backbone.features(adapter.weights(), x).square().sum().backward()
    [vector] = adapter.parameters
    assert vector.grad is not None
    biases = [g for n, g in Weights(vector.grad, weights.layout).items() if n.endswith("attention_biases")]
    assert biases
    assert any(bool(gradient.any()) for gradient in biases)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("vit_tiny_patch16_224", {}, "does not take images of 3 x 32 x 32 .AssertionError: Input height"),
        ("vit_tiny_patch16_224", {"options": {"embed_dim": 7}}, "backbone.options: vit_tiny_patch16_224 cannot be bui"),
        ("vit_tiny_patch16_224", {"options": {"size": 7}}, "backbone.options: .*unexpected keyword argument 'size'"),
        (
            "test_resnet",
            {"adapter": "lora"},
            r"lora.targets: ResNet has no .* lora.modules: \.\*\\.conv2, or use adapt",
        ),
        ("tiny_vit_5m_224", {"options": TINY_VIT, "adapter": "lora"}, r"use lora.targets=\[q,k,v\] or lora.modules"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_without_its_weights(
    model: str, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^protocol tiny: .*{message}") as raised:
        check_model(protocol(model, **fields), IMAGE)
    assert "\n" not in str(raised.value)


def test_lora_on_a_grouped_convolution_is_a_matrix_of_its_weight() -> None:
    backbone = Backbone(
        protocol("test_efficientnet", adapter="lora", lora={"rank": 2, "modules": r".*\.conv_dw"}), IMAGE
    )
    name, shape = backbone.pretrained.layout.names[0], backbone.pretrained.layout.shapes[0]
    assert shape[1] == 1  # a filter of its own for every channel
    adapter = backbone.adapter(backbone.pretrained, "AB", 0)
    backbone.features(adapter.weights(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).sum().backward()
    with torch.no_grad():
        for factor in adapter.parameters:
            factor.normal_()
    moved = (adapter.weights() - backbone.pretrained).tensors()[name].detach()
    assert torch.linalg.matrix_rank(moved.flatten(1)) == 2


class Shared(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = nn.Linear(3, 3)


def test_a_tensor_of_several_names_is_exported_under_all_and_read_under_the_first() -> None:
    backbone = Backbone(protocol("test_resnet"), IMAGE)
    backbone.module = Shared()
    backbone._shared = _other_names(backbone.module)
    assert backbone._shared == {"again.weight": "first.weight", "again.bias": "first.bias"}
    weights = Weights.of({"first.weight": torch.full((3, 3), 2.0)})
    state = backbone.export(weights)
    assert all(torch.equal(state[f"{name}.weight"], torch.full((3, 3), 2.0)) for name in ("first", "again"))
    assert set(backbone.own_names(state)) == {"first.weight", "first.bias"}
    assert set(backbone.own_names({"again.bias": state["again.bias"]})) == {"first.bias"}
