from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.config.files import load_dataset_config, load_protocol, shown_image, weights_file
from bench.config.schema import ImageConfig, ProtocolConfig
from bench.data.stream import Stream
from bench.method import Trainer
from bench.method.weights import Weights
from bench.model.adapters.frozen import Frozen
from bench.model.adapters.full import Full
from bench.model.adapters.lora import LoRA
from bench.model.backbone import Backbone, SplitQKV
from bench.model.heads import concatenate, new_head
from bench.run.evaluate import predict
from bench.run.pretrain import pretrain
from bench.run.train import train

IMAGE = shown_image(load_protocol("embedded"), load_dataset_config("digits", []))


@pytest.fixture(scope="module")
def x(stream: Stream) -> Tensor:
    return stream.train_images[::50]


def plain_timm(protocol: ProtocolConfig) -> nn.Module:
    """timm's own model with the protocol's weights, attention fused as timm has it."""
    config = protocol.backbone
    model = timm.create_model(config.model, pretrained=False, num_classes=0, **config.options)
    model.load_state_dict(load_file(weights_file(protocol)), strict=True)
    return model.eval()


# ---- the model -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 16, 64), (1, 5, 64), (64, 16, 64)])
def test_split_qkv_is_bit_equal_to_the_fused_linear(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fused = nn.Linear(64, 192, bias=bias)
    split, x = SplitQKV(fused), torch.randn(shape)
    assert torch.equal(split(x), fused(x))
    assert list(dict(split.named_children())) == ["q", "k", "v"]
    fused.weight.data.zero_()
    assert bool(split.q.weight.any())  # memory of its own


def test_the_backbone_is_timms_model_with_timms_weights(
    protocol: ProtocolConfig, backbone: Backbone, x: Tensor
) -> None:
    pixels = (x.float() / 255 - IMAGE.mean[0]) / IMAGE.std[0]
    assert torch.equal(backbone.pixels(x), pixels)
    with torch.no_grad():
        expected = plain_timm(protocol)(pixels)
    assert torch.equal(backbone.features(backbone.pretrained, x), expected)
    assert expected.shape == (len(x), backbone.dim)


def test_normalisation_is_per_channel() -> None:
    image = ImageConfig(size=16, channels=3, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])
    options = {**load_protocol("embedded_pretrain").backbone.options, "in_chans": 3}
    backbone = Backbone(load_protocol("embedded_pretrain", {"backbone.options": options}), image)
    pixels = backbone.pixels(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([0.9, 0.4, 0.175]))


def test_adapted_weights_are_k_and_v_in_the_models_order(backbone: Backbone, full_backbone: Backbone) -> None:
    expected = [f"blocks.{i}.attn.qkv.{p}.weight" for i in range(4) for p in "kv"]
    assert list(backbone.pretrained.layout.names) == expected
    parameters = dict(backbone.module.named_parameters())
    assert all(torch.equal(parameters[n], view) for n, view in backbone.pretrained.items())
    assert list(full_backbone.pretrained.layout.names) == [n for n, _ in full_backbone.module.named_parameters()]
    assert full_backbone.pretrained.vector.numel() == sum(p.numel() for p in full_backbone.module.parameters())
    assert not any(p.requires_grad for p in backbone.module.parameters())
    assert not backbone.module.training


def test_random_backbones_are_a_function_of_the_seed_alone() -> None:
    protocol = load_protocol("embedded_pretrain")
    first = Backbone(protocol, IMAGE, seed=1).pretrained.digest()
    torch.randn(3)
    assert Backbone(protocol, IMAGE, seed=1).pretrained.digest() == first
    assert Backbone(protocol, IMAGE, seed=2).pretrained.digest() != first


def test_building_a_backbone_leaves_the_global_generator_alone(protocol: ProtocolConfig) -> None:
    state = torch.get_rng_state()
    Backbone(protocol, IMAGE)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_do_not_fit_are_a_users_mistake(tmp_path: Path, protocol: ProtocolConfig) -> None:
    tensors = load_file(weights_file(protocol))
    tensors.pop("patch_embed.proj.weight")
    save_file(tensors, tmp_path / "wrong.safetensors")
    wrong = load_protocol(
        "embedded", {"backbone.weights": str(tmp_path / "wrong.safetensors"), "backbone.sha256": None}
    )
    with pytest.raises(UserError, match=r"backbone\.weights: .*wrong\.safetensors does not fit"):
        Backbone(wrong, IMAGE)


# ---- dense forward against PEFT's own ------------------------------------------------------------------------------
def peft_model(backbone: Backbone, scale: float, rank: int = 8) -> tuple[nn.Module, dict[str, LoraLinear]]:
    """PEFT's model on the same start, A and B random, and its adapted layers by our tensor names."""
    torch.manual_seed(3)
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=r".*\.qkv\.(k|v)")
    model = inject_adapter_in_model(config, copy.deepcopy(backbone.module)).eval()
    layers = {n: model.get_submodule(n.removesuffix(".weight")) for n in backbone.pretrained.layout.names}
    for layer in layers.values():
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return model, layers


def same_lora(backbone: Backbone, layers: dict[str, LoraLinear], scale: float) -> LoRA:
    factors = {n: (m.lora_A["default"].weight.data.clone(), m.lora_B["default"].weight.data.clone())
               for n, m in layers.items()}  # fmt: skip
    return LoRA(factors, backbone.pretrained, scale)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_dense_forward_and_gradients_equal_pefts(
    backbone: Backbone, x: Tensor, scale: float, record_property: Callable[[str, object], None]
) -> None:
    model, layers = peft_model(backbone, scale)
    lora = same_lora(backbone, layers, scale)
    ours, theirs = backbone.features(lora.weights(), x), model(backbone.pixels(x))
    head = new_head(10, backbone.dim, 0.02, "cpu", 0)
    error = float((head(ours) - head(theirs)).detach().abs().max())
    record_property("largest_logit_error", error)
    assert error < 5e-7
    assert float((ours - theirs).detach().abs().max()) < 1e-6 * float(theirs.detach().abs().max())
    assert float((theirs - backbone.features(backbone.pretrained, x)).detach().abs().max()) > 0.1  # far from the start
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)) / ours.numel() ** 0.5
    (ours * direction).sum().backward()
    (theirs * direction).sum().backward()
    worst = 0.0
    for factor, stacks in (("lora_A", lora.A), ("lora_B", lora.B)):
        assert len(stacks) == 1  # all adapted tensors have one shape
        assert stacks[0].grad is not None
        for mine, layer in zip(stacks[0].grad, layers.values(), strict=True):
            grad = getattr(layer, factor)["default"].weight.grad
            worst = max(worst, float((mine - grad).abs().max() / grad.abs().max()))
    record_property("largest_relative_gradient_error", worst)
    assert worst < 1e-5


def test_dense_forward_in_float64_equals_pefts_far_below_float32(backbone: Backbone, x: Tensor) -> None:
    double = copy.copy(backbone)
    double.module = copy.deepcopy(backbone.module).double()
    double.pretrained = Weights.of({n: t.double() for n, t in backbone.pretrained.items()})
    double.transform = copy.copy(backbone.transform)
    double.transform.mean, double.transform.std = backbone.transform.mean.double(), backbone.transform.std.double()
    model, layers = peft_model(double, 1.0)
    for layer in layers.values():
        layer.double()
    lora = same_lora(double, layers, 1.0)
    with torch.no_grad():
        ours, theirs = double.features(lora.weights(), x), model(double.pixels(x))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_folding_is_pefts_merge_and_a_new_start(backbone: Backbone, protocol: ProtocolConfig, x: Tensor) -> None:
    model, layers = peft_model(backbone, 1.0)
    folded = same_lora(backbone, layers, 1.0).weights().detach()
    for name, view in folded.items():
        layers[name].merge()
        torch.testing.assert_close(layers[name].get_base_layer().weight.data, view, rtol=0, atol=1e-6)
    fresh = backbone.adapter(folded, "AB", seed=5)
    assert fresh.weights().digest() == folded.digest()  # B = 0: the next task begins exactly there
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(folded, x), model(backbone.pixels(x)), rtol=0, atol=2e-6)


# ---- adapters ------------------------------------------------------------------------------------------------------
def two_shapes() -> tuple[Weights, dict[str, tuple[Tensor, Tensor]]]:
    """Tensors of two shapes, interleaved, with factors of rank 2."""
    torch.manual_seed(0)
    shapes = {"a": (5, 3), "b": (4, 6), "c": (5, 3), "d": (4, 6), "e": (5, 3)}
    start = Weights.of({n: torch.randn(s, dtype=torch.float64) for n, s in shapes.items()})
    factors = {n: (torch.randn(2, i, dtype=torch.float64), torch.randn(o, 2, dtype=torch.float64))
               for n, (o, i) in shapes.items()}  # fmt: skip
    return start, factors


@pytest.mark.parametrize("names", ["abcde", "ac", "ba", "b"])
def test_lora_of_several_shapes_puts_each_product_in_its_place(names: str) -> None:
    everything, factors = two_shapes()
    start = Weights.of({n: everything.tensors()[n] for n in names})
    lora = LoRA({n: factors[n] for n in names}, start, scale=0.7)
    for name, view in lora.weights().items():
        a, b = factors[name]
        torch.testing.assert_close(view, everything.tensors()[name] + 0.7 * b @ a, rtol=1e-14, atol=1e-14)


def test_lora_gradients_through_several_shapes_are_those_of_the_products() -> None:
    start, factors = two_shapes()
    lora = LoRA(factors, start, scale=0.7)
    target = start.map(lambda v: torch.linspace(-1, 1, len(v), dtype=v.dtype))
    (lora.weights() * target).sum().backward()
    for names, a, b in zip((["a", "c", "e"], ["b", "d"]), lora.A, lora.B, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        for i, name in enumerate(names):
            g = 0.7 * target.tensors()[name]
            torch.testing.assert_close(b.grad[i], g @ factors[name][0].T)
            torch.testing.assert_close(a.grad[i], factors[name][1].T @ g)


def test_lora_begins_at_start_with_pefts_a_and_b_zero(backbone: Backbone) -> None:
    start = backbone.pretrained + 0.01
    one, again, other = (backbone.adapter(start, "AB", seed) for seed in (1, 1, 2))
    assert isinstance(one, LoRA)
    assert isinstance(again, LoRA)
    assert isinstance(other, LoRA)
    assert one.weights().digest() == start.digest()
    assert not bool(one.B[0].any())
    bound = (6 / ((1 + 5) * 64)) ** 0.5  # Kaiming-uniform with a = sqrt(5)
    assert 0.9 * bound < float(one.A[0].detach().abs().max()) <= bound
    assert torch.equal(one.A[0], again.A[0])
    assert not torch.equal(one.A[0], other.A[0])
    assert one.A[0].shape == (8, 8, 64)
    assert [p.requires_grad for p in one.parameters] == [True, True]


def test_drawing_an_adapter_leaves_model_and_global_generator_alone(backbone: Backbone) -> None:
    state, names = torch.get_rng_state(), [n for n, _ in backbone.module.named_modules()]
    before = {n: p.clone() for n, p in backbone.module.state_dict().items()}
    backbone.adapter(backbone.pretrained, "AB", 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert [n for n, _ in backbone.module.named_modules()] == names
    assert all(torch.equal(p, before[n]) for n, p in backbone.module.state_dict().items())


def test_only_b_is_trained_where_a_is_fixed(backbone: Backbone) -> None:
    lora = backbone.adapter(backbone.pretrained, "B", 1)
    assert isinstance(lora, LoRA)
    assert lora.parameters == lora.B
    assert not lora.A[0].requires_grad


def test_full_adapter_is_the_weights_themselves(full_backbone: Backbone, x: Tensor) -> None:
    start = full_backbone.pretrained
    before = start.digest()
    full = full_backbone.adapter(start, "AB", 0)
    assert isinstance(full, Full)
    assert full.weights().digest() == before
    full_backbone.features(full.weights(), x).square().sum().backward()
    [vector] = full.parameters
    assert vector.grad is not None
    reached = {n for n, g in Weights(vector.grad, start.layout).items() if bool(g.any())}
    assert reached >= {"pos_embed", "patch_embed.proj.weight", "blocks.3.mlp.fc1.bias", "blocks.0.attn.qkv.q.weight"}
    with torch.no_grad():
        vector.zero_()
    assert start.digest() == before
    with pytest.raises(UserError, match=r"adapter=full has no LoRA factor"):
        full_backbone.adapter(start, "B", 0)


def test_frozen_is_the_start_and_trains_nothing(backbone: Backbone) -> None:
    frozen = Frozen(backbone.pretrained)
    assert frozen.parameters == []
    assert frozen.weights().digest() == backbone.pretrained.digest()


def test_training_and_predicting_leave_theta_0_and_the_module_alone(
    backbone: Backbone, full_backbone: Backbone, protocol: ProtocolConfig, stream: Stream
) -> None:
    for model in (backbone, full_backbone):
        start = model.pretrained
        before = start.digest(), {n: p.clone() for n, p in model.module.state_dict().items()}
        learnt = train(model, stream, stream.tasks[:1], Trainer(), start, protocol, run_seed=0)
        predict(model, learnt.weights, concatenate(learnt.heads), stream, stream.tasks[:1], 100)
        assert learnt.weights.digest() != before[0]
        assert start.digest() == before[0]
        assert all(torch.equal(p, before[1][n]) for n, p in model.module.state_dict().items())
        assert all(p.grad is None for p in model.module.parameters())


# ---- others' tools -------------------------------------------------------------------------------------------------
def test_a_pretrained_file_loads_into_timm_and_gives_the_same_features(tmp_path: Path, x: Tensor) -> None:
    quick = load_protocol("embedded_pretrain", {"train.epochs": 1, "train.batch": 64, "train.warmup_steps": 0})
    out = tmp_path / "vit.safetensors"
    told = pretrain(quick, load_dataset_config("digits", []), tmp_path / "data", seed=0, out=out)
    model = timm.create_model(quick.backbone.model, pretrained=False, num_classes=0, **quick.backbone.options).eval()
    model.load_state_dict(load_file(out), strict=True)
    options = {"backbone.weights": str(out), "backbone.sha256": told["sha256"]}
    loaded = Backbone(load_protocol("embedded", options), IMAGE)
    with torch.no_grad():
        assert torch.equal(loaded.features(loaded.pretrained, x), model(loaded.pixels(x)))
    assert told["parameters"] == sum(p.numel() for p in model.parameters())
    assert told["accuracy"] > 15  # it learnt something: chance is 10


def test_heads_are_a_function_of_their_seed() -> None:
    one, again, other = (new_head(3, 64, 0.02, "cpu", seed, "content") for seed in (0, 0, 1))
    assert torch.equal(one.weight, again.weight)
    assert not torch.equal(one.weight, other.weight)
    assert not bool(one.bias.any())


def test_libraries_import_from_the_repository_root() -> None:
    """The folder ``datasets/`` is seen as a namespace package there, and must not be taken for the library."""
    code = """if True:
        import sys, timm, peft
        assert sys.path[0] == ""
        try:
            import transformers
        except ModuleNotFoundError as error:
            assert error.name == "transformers", error
        import torch
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=1)
        lora = peft.LoraConfig(r=2, target_modules=["qkv"])
        assert peft.get_peft_model(model, lora)(torch.zeros(1, 3, 32, 32)).shape == (1, 192)
        print("ok")
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("ok")
