"""Kinds of adapters: what each names, where it begins, and LoRA's draws beside PEFT's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
from peft import LoraConfig, OFTConfig, inject_adapter_in_model
from torch import Tensor, nn

import bench.model.adapters
from bench.common.errors import UserError
from bench.config.schema import AdapterKind, ImageConfig, LoRAConfig, ProtocolConfig, check
from bench.method.weights import Weights
from bench.model.adapters import adapter_of
from bench.model.adapters.adapter import Adapter
from bench.model.adapters.lora import LoRA, draw
from bench.model.backbone import Backbone
from bench.model.split_qkv import SplitQKV, split_fused_qkv

KINDS = get_args(AdapterKind)
VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
IMAGE = ImageConfig(size=8, channels=1, mean=[0.5], std=[0.25])


def backbone(model: str, options: dict[str, Any], image: ImageConfig = IMAGE, **fields: Any) -> Backbone:
    """A small model with random weights."""
    told = {"key": "tiny", "title": "Tiny", "train": {"epochs": 1, "lr": 1, "head_lr": 1}, **fields}
    told["backbone"] = {"model": model, "options": options}
    return Backbone(check(told, ProtocolConfig, "tiny"), image)


def vit(**fields: Any) -> Backbone:
    return backbone("vit_tiny_patch16_224", VIT, **{"oft": {"block": 4}, **fields})


def resnet(**fields: Any) -> Backbone:
    return backbone("resnet18", {"in_chans": 1}, ImageConfig(size=32, channels=1, mean=[0.5], std=[0.25]), **fields)


def images(model: Backbone) -> Tensor:
    side = model.transform.image.size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 1, side, side), dtype=torch.uint8, generator=generator)


# ---- every kind ----------------------------------------------------------------------------------------------------
def test_every_kind_that_a_protocol_may_name_is_a_file_with_one_class_and_no_file_is_left_over() -> None:
    files = {file.stem for file in Path(bench.model.adapters.__file__).parent.glob("*.py")}
    assert files - {"__init__", "adapter"} == set(KINDS)
    assert all(issubclass(adapter_of(kind), Adapter) for kind in KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_tensors_that_exist_in_the_models_order(kind: str) -> None:
    model = vit(adapter=kind)
    parameters = dict(model.module.named_parameters())
    names = model.pretrained.layout.names
    assert names
    assert [name for name in parameters if name in names] == list(names)
    assert all(torch.equal(view, parameters[name]) for name, view in model.pretrained.items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_begins_at_start_bit_for_bit_and_never_writes_to_it(kind: str) -> None:
    model = vit(adapter=kind)
    start = model.pretrained.map(lambda v: v + torch.linspace(-1, 1, len(v)))
    before = start.digest()
    for factors in model.config.adapter_section.factors:
        adapter = model.adapter(start, factors, seed=1)
        assert adapter.weights().digest() == before
        with torch.no_grad():
            for parameter in adapter.parameters:
                parameter.add_(1)
        assert start.digest() == before
        assert (adapter.weights().digest() == before) is not bool(adapter.parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_reaches_what_every_kind_trains(kind: str) -> None:
    model = vit(adapter=kind)
    adapter = model.adapter(model.pretrained, "AB", seed=1)
    weights = adapter.weights()
    assert weights.vector.requires_grad is bool(adapter.parameters)
    with torch.no_grad():  # at B = 0 no gradient reaches A
        for parameter in adapter.parameters:
            parameter.add_(0.01)
    if adapter.parameters:
        model.features(adapter.weights(), images(model)).square().sum().backward()
    for parameter in adapter.parameters:
        assert parameter.grad is not None
        assert bool(parameter.grad.any())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_draws_from_its_seed_alone(kind: str) -> None:
    model = vit(adapter=kind)
    state = torch.get_rng_state()
    one, again = (model.adapter(model.pretrained, "AB", seed=3).parameters for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_cannot_keep_fixed_is_refused_in_one_line(kind: str) -> None:
    model = vit(adapter=kind)
    if "B" in model.config.adapter_section.factors:
        assert model.adapter(model.pretrained, "B", 0).parameters
    else:
        with pytest.raises(UserError, match=f"protocol tiny: adapter={kind} has no LoRA factor to keep fixed"):
            model.adapter(model.pretrained, "B", 0)


# ---- LoRA's draws --------------------------------------------------------------------------------------------------
def pefts_factors(module: nn.Module, names: list[str], rank: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    layers = [name.removesuffix(".weight") for name in names]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, target_modules="|".join(layers).replace(".", r"\."))
        model = inject_adapter_in_model(config, copy.deepcopy(module))
    made = [model.get_submodule(layer) for layer in layers]
    return [(m.lora_A["default"].weight.data, m.lora_B["default"].weight.data) for m in made]


@pytest.mark.parametrize("seed", [0, 7, 2**40])
@pytest.mark.parametrize("rank", [1, 3, 8])
@pytest.mark.parametrize(
    ("make", "lora"),
    [
        (vit, {}),
        (vit, {"targets": ["k"]}),
        (vit, {"targets": ["v", "q", "k"]}),
        (vit, {"modules": r".*\.(k|fc1|fc2|proj)"}),  # Linears of several shapes, and a convolution of 4 x 4
        (resnet, {"modules": r"conv1|layer1\.0\.conv\d|layer2\.0\.downsample\.0"}),  # 7 x 7, 3 x 3 and 1 x 1
    ],
)
def test_a_and_b_are_what_peft_draws_from_the_same_seed(make: Any, lora: dict[str, Any], rank: int, seed: int) -> None:
    model = make(lora={"rank": rank, **lora})
    names = list(model.pretrained.layout.names)
    expected = pefts_factors(model.module, names, rank, seed)
    drawn = list(draw(model.pretrained.layout.shapes, rank, seed))
    for (a, b), (their_a, their_b) in zip(drawn, expected, strict=True):
        assert torch.equal(a, their_a.flatten(1))
        assert torch.equal(b, their_b.flatten(1))
    adapter = model.adapter(model.pretrained, "AB", seed)
    assert isinstance(adapter, LoRA)
    assert sum(len(stack) for stack in adapter.A) == len(expected)
    assert torch.equal(adapter.A[0][0], expected[0][0].flatten(1))


# ---- LoRA's modules ------------------------------------------------------------------------------------------------
def test_lora_adapts_the_modules_that_a_pattern_names() -> None:
    assert list(vit(lora={"modules": r"blocks\.1\.mlp\.fc\d"}).pretrained.layout.names) == [
        "blocks.1.mlp.fc1.weight",
        "blocks.1.mlp.fc2.weight",
    ]
    model = resnet(lora={"rank": 2, "modules": r"layer4\.1\.conv\d|layer4\.0\.downsample\.0"})
    assert model.pretrained.layout.shapes == ((512, 256, 1, 1), (512, 512, 3, 3), (512, 512, 3, 3))
    adapter = model.adapter(model.pretrained, "AB", 0)
    assert isinstance(adapter, LoRA)
    assert [a.shape[1:] for a in adapter.A] == [(2, 256), (2, 512 * 9)]
    with torch.no_grad():
        adapter.B[1].normal_()
    delta = (adapter.weights() - model.pretrained).tensors()
    torch.testing.assert_close(
        delta["layer4.1.conv2.weight"].flatten(1), (adapter.B[1][1] @ adapter.A[1][1]).detach(), rtol=1e-4, atol=1e-5
    )
    assert not bool(delta["layer4.0.downsample.0.weight"].any())


def test_batch_norm_of_an_adapted_convnet_stays_as_it_was() -> None:
    model = resnet(lora={"modules": r"layer4\.1\.conv2"})
    buffers = {name: buffer.clone() for name, buffer in model.module.named_buffers()}
    adapter = model.adapter(model.pretrained, "AB", 0)
    model.features(adapter.weights(), images(model)).sum().backward()
    assert not any(layer.training for layer in model.module.modules())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.module.named_buffers())


@pytest.mark.parametrize(
    ("make", "lora", "message"),
    [
        (vit, {"modules": "blocks.*fc3"}, r"lora.modules: no module of VisionTransformer is called 'blocks\.\*fc3'"),
        (vit, {"modules": r"blocks\.0\.norm1"}, r"blocks\.0\.norm1, a LayerNorm, which is neither Linear nor Conv2d$"),
        (vit, {"modules": r".*\.qkv"}, r"a SplitQKV, which is neither .*; name its parts blocks\.0\.attn\.qkv\.q"),
        (vit, {"modules": ".*"}, "the whole model, a VisionTransformer"),
        (resnet, {}, r"lora.targets: ResNet has no fused qkv .* lora.modules: \.\*\\\.conv1, or use adapter: full"),
    ],
)
def test_what_lora_cannot_adapt_is_one_line_before_anything_is_trained(
    make: Any, lora: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"^protocol tiny: .*{message}") as raised:
        make(lora=lora)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"modules": "("}, "lora.modules: .*not a regular expression"),
        ({"modules": "x", "targets": ["q"]}, "lora: .*give either targets or modules"),
        ({"targets": []}, "lora.targets"),
    ],
)
def test_options_of_lora_that_contradict_each_other_are_found_in_planning(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        vit(lora=lora)


# ---- fused query, key and value ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("model", "options", "thirds"),
    [
        ("vit_tiny_patch16_224", VIT, True),
        ("beit_base_patch16_224", VIT, True),
        ("swin_tiny_patch4_window7_224", {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": [1, 1]}, True),
        ("tiny_vit_5m_224", {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 32, 64], "num_heads": [2, 2, 2, 2]}, False),
        ("maxvit_pico_rw_256", {}, False),
    ],
)
def test_it_is_known_whether_a_models_fused_rows_are_q_k_and_v(model: str, options: Any, thirds: bool) -> None:
    module = timm.create_model(model, pretrained=False, num_classes=0, **options)
    split_fused_qkv(module)
    layers = [layer for layer in module.modules() if isinstance(layer, SplitQKV)]
    assert layers
    assert {layer.thirds for layer in layers} == {thirds}
    where = "protocol tiny"
    every = LoRA.names(module, LoRAConfig(targets=("q", "k", "v")), where)
    assert len(every) == 3 * len(layers)
    if thirds:
        assert LoRA.names(module, LoRAConfig(targets=("k",)), where) == [n for n in every if n.endswith(".k.weight")]
    else:
        with pytest.raises(UserError, match="are not q, k and v in three equal parts"):
            LoRA.names(module, LoRAConfig(targets=("k",)), where)


class TwoThirds(nn.Module):
    """Attention with k and v alone, as GC-ViT's global blocks have it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)


def test_a_fused_layer_without_a_query_is_no_q_k_and_v_and_loses_no_row() -> None:
    whole, cut = TwoThirds(8), TwoThirds(6)
    split_fused_qkv(whole)
    split_fused_qkv(cut)
    assert isinstance(whole.qkv, nn.Linear)
    assert isinstance(cut.qkv, SplitQKV)
    assert not cut.qkv.thirds


@pytest.mark.parametrize("targets", [("k",), ("q", "k", "v")])
def test_a_model_of_which_only_some_blocks_have_q_k_and_v_is_refused(targets: tuple[Any, ...]) -> None:
    """Rather than adapted in some of its blocks, and nobody told."""
    model = nn.ModuleList([vit().module, TwoThirds(8)])
    split_fused_qkv(model)
    with pytest.raises(UserError, match=r"the 16 rows of 1\.qkv are not q, k and v; use lora\.modules"):
        LoRA.names(model, LoRAConfig(targets=targets), "protocol tiny")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_model_that_multiplies_by_its_fused_weight_itself_is_trained(kind: str) -> None:
    model = backbone("beit_base_patch16_224", VIT, adapter=kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = images(model)
    plain = timm.create_model("beit_base_patch16_224", pretrained=False, num_classes=0, **VIT).eval()
    plain.load_state_dict(model.export(model.pretrained))
    with torch.no_grad():
        assert torch.equal(model.features(model.pretrained, x), plain(model.pixels(x)))
    adapter = model.adapter(model.pretrained, "AB", 0)
    model.features(adapter.weights(), x).square().sum().backward()
    gradients = [p.grad for p in adapter.parameters if p.grad is not None]
    assert any(bool(g.any()) for g in gradients)
    changed = Weights(model.pretrained.vector + 0.1, model.pretrained.layout)
    plain.load_state_dict(model.export(changed))
    with torch.no_grad():
        assert torch.equal(model.features(changed, x), plain(model.pixels(x)))


# ---- OFT -----------------------------------------------------------------------------------------------------------
def turned(model: Backbone, start: Weights, std: float) -> Adapter[Any]:
    adapter = model.adapter(start, "AB", seed=0)
    [entries] = adapter.parameters
    with torch.no_grad():
        entries.normal_(std=std, generator=torch.Generator().manual_seed(1))
    return adapter


@pytest.mark.parametrize("std", [1e-3, 0.1, 2.0])
def test_oft_gives_the_weights_that_peft_merges(std: float) -> None:
    model = vit(adapter="oft")
    start = model.pretrained
    adapter = turned(model, start, std)
    [entries] = adapter.parameters
    per_tensor = entries.detach().split(len(entries) // len(start.layout.names))
    for (name, W), got, own in zip(start.items(), adapter.weights().tensors().values(), per_tensor, strict=True):
        net = nn.Sequential()
        net.add_module("layer", nn.Linear(W.shape[1], W.shape[0], bias=False))
        config = OFTConfig(oft_block_size=4, use_cayley_neumann=False, target_modules=["layer"])
        peft = inject_adapter_in_model(config, net).layer
        peft.base_layer.weight.data.copy_(W)
        peft.oft_R["default"].weight.data.copy_(own)
        peft.merge()
        torch.testing.assert_close(got.detach(), peft.base_layer.weight, rtol=1e-5, atol=1e-5, msg=name)


def test_oft_keeps_lengths_and_angles_between_rows_however_far_it_turns() -> None:
    model = vit(adapter="oft", oft={"block": 8, "modules": r"blocks\.\d\.(mlp\.fc1|attn\.proj)"})
    start = model.pretrained
    moved = turned(model, start, 3.0).weights()
    assert (moved - start).norm() > 0.5 * start.norm()
    for before, after in zip(start.tensors().values(), moved.tensors().values(), strict=True):
        torch.testing.assert_close(after @ after.T, before @ before.T, rtol=1e-4, atol=1e-5)


def test_oft_turns_a_convolution_as_one_matrix() -> None:
    model = resnet(adapter="oft", oft={"block": 16, "modules": r"layer1\.0\.conv1"})
    start = model.pretrained
    [before], [after] = (list(w.tensors().values()) for w in (start, turned(model, start, 0.5).weights()))
    assert before.shape == (64, 64, 3, 3)
    gram = [w.flatten(1) @ w.flatten(1).T for w in (before, after)]
    torch.testing.assert_close(gram[1], gram[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, atol=1e-2)


def test_what_oft_cannot_adapt_is_one_line() -> None:
    with pytest.raises(UserError, match=r"oft.block: 5 does not divide the 16 inputs of blocks\.0\.attn\.qkv\.k"):
        vit(adapter="oft", oft={"block": 5})
    with pytest.raises(UserError, match=r"oft.targets: ResNet has no fused qkv layer .* oft.modules: "):
        resnet(adapter="oft")
    with pytest.raises(UserError, match=r"oft\.block"):
        vit(adapter="oft", oft={"block": 1})
