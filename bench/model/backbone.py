"""A timm model, which of its weights are adapted, and the forward pass as a function of those weights.

Training runs on dense weights: the forward is ``functional_call(backbone, W)`` with the W that an adapter stands for.
So perturbation, penalty, Fisher and the gradients of data-driven rules share one path, and folding an adapter into the
base is just a new W_start. What may change, and by what means, is the matter of the adapter's kind.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.common.errors import UserError, unknown
from bench.common.seeds import derive
from bench.config.schema import ImageConfig, ProtocolConfig
from bench.data.transforms import Transform
from bench.method.weights import Weights
from bench.model.adapters import Adapter, adapter_of
from bench.model.pretrained_files import find_weights, shapes
from bench.model.probe import feature_size, kept_tensors
from bench.model.split_qkv import SplitQKV, split_fused_qkv

META = "meta"  #: torch's device for shapes without values


def check_model(protocol: ProtocolConfig, image: ImageConfig) -> None:
    """Build the backbone without its weights, so that what cannot be used or adapted is told before anything runs.

    Without any values where that works: some models compute with them as they are built or called.

    Raises:
        UserError: as :class:`Backbone` does, but for its file of weights.
    """
    plain = protocol.backbone.model_copy(update={"weights": None, "sha256": None, "pretrained": False})
    protocol = protocol.model_copy(update={"backbone": plain})
    try:
        Backbone(protocol, image, META)
    except UserError:
        Backbone(protocol, image)


def _timm_model(protocol: ProtocolConfig, file: Path | None, known: Any) -> Any:
    """timm's module with the weights of the file, every name of which must fit; without one: random."""
    config = protocol.backbone
    options = {"num_classes": 0, **config.options}
    wanted = options["num_classes"]
    try:
        if file is None:
            return timm.create_model(config.model, pretrained=False, **options)
        found = shapes(file)
        # timm converts and resizes what others saved, but is lenient with names where the classifier differs: so it is
        # built as the file has it, and dropped afterwards.
        outputs = (*found.get(f"{_names(known.classifier)[0]}.weight", ()), *found.get("visual.proj", ())[::-1], 0)[0]
        channels = (*found.get(f"{_names(known.first_conv)[0]}.weight", ())[1:], known.input_size[0])[0]
        told = {"file": str(file), "custom_load": False, "num_classes": outputs}
        told["input_size"] = (channels, *known.input_size[1:])
        module = timm.create_model(
            config.model, pretrained=True, pretrained_cfg_overlay=told, **{**options, "num_classes": outputs}
        )
    except TypeError as error:
        raise UserError(f"protocol {protocol.key}: backbone.options: {error}") from None
    except (AssertionError, ValueError, IndexError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {textwrap.shorten(str(error), 100)}"
        place = f"options: {config.model} cannot be built" if file is None else f"weights: timm cannot read {file}"
        raise UserError(f"protocol {protocol.key}: backbone.{place} ({why})") from None
    except RuntimeError as error:
        why = (str(error).splitlines() * 2)[1].strip()  # torch names the mismatch in its second line
        raise UserError(
            f"protocol {protocol.key}: backbone.weights: {file} does not fit {config.model}: {why}"
        ) from None
    if wanted not in (0, outputs):
        raise UserError(f"protocol {protocol.key}: backbone.options.num_classes: {wanted}, but {file} has {outputs}")
    if not wanted:
        module.reset_classifier(0)
    return module


def _other_names(module: nn.Module) -> dict[str, str]:
    """Further names of parameters that a model uses in several places (CoaT), and the first name of each."""
    first = {parameter: name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[parameter] for name, parameter in every if name != first[parameter]}


def _names(one_or_more: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """timm's way of naming layers."""
    return (one_or_more or "head",) if isinstance(one_or_more, str | None) else tuple(one_or_more)


class Backbone:
    """The pretrained model without its head.

    Attributes:
        pretrained: theta_0, the adapted weights as the checkpoint has them.
        dim: D, the size of a feature vector, measured.
        transform: from a dataset's images to what the model takes, at test and in training.
        classifiers: how names of the model's own classifier begin, which checkpoints may hold and we do not use. With
            ``options.num_classes`` its output is the feature: CLIP's projection into the space of its text rows.
    """

    def __init__(self, protocol: ProtocolConfig, image: ImageConfig, device: str = "cpu", seed: int = 0) -> None:
        config = protocol.backbone
        if not (timm.is_model_pretrained if "." in config.model else timm.is_model)(config.model):
            models = timm.list_models() + timm.list_pretrained()
            raise unknown("timm model", config.model, models, f"protocol {protocol.key}: backbone.model")
        known, file = timm.get_pretrained_cfg(config.model), None if device == META else find_weights(protocol)
        with torch.random.fork_rng(devices=[]), torch.device(META if device == META else "cpu"):
            torch.manual_seed(derive("backbone", seed))  # only seen where there is no checkpoint
            module = _timm_model(protocol, file, known)
        used = bool(config.options.get("num_classes"))
        self.classifiers = () if used else tuple(f"{name}." for name in _names(known.classifier))
        split_fused_qkv(module)
        self.module: nn.Module = module.eval().requires_grad_(False).to(device)
        self.config, self.device = protocol, device
        self.dim = feature_size(module, image, device, f"protocol {protocol.key}: backbone.model: {config.model}")
        self._kept = kept_tensors(module)
        self._shared = _other_names(module)
        self.transform = Transform(image, protocol.augment, device)
        self._adapter = adapter_of(protocol.adapter)
        names = self._adapter.names(self.module, protocol.adapter_section, f"protocol {protocol.key}")
        parameters = dict(self.module.named_parameters())
        self.pretrained = Weights.of({n: parameters[n] for n in names})

    def pixels(self, x: Tensor) -> Tensor:
        """The test view of uint8 (b, C, H, W): what the model takes."""
        return self.transform.shown(x)

    def forward(self, weights: Weights, pixels: Tensor) -> Tensor:
        """Features (b, D) of what the model takes, under the adapted weights; differentiable in both."""
        for kept in self._kept:
            kept.clear()  # made of other weights
        return functional_call(self.module, weights.tensors(), (pixels,))

    def features(self, weights: Weights, x: Tensor) -> Tensor:
        """Features (b, D) of the test view of uint8 images (b, C, H, W) under the adapted weights; differentiable."""
        return self.forward(weights, self.pixels(x))

    def own_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under timm's names as this module has them: q, k and v of a fused ``qkv`` apart, one that has several
        names under the first.
        """
        split = {name for name, module in self.module.named_modules() if isinstance(module, SplitQKV)}
        own: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            owner, _, kind = name.rpartition(".")
            if owner in split:
                own |= {f"{owner}.{part}.{kind}": x for part, x in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                own[name] = tensor
        firsts = {self._shared[name]: tensor for name, tensor in own.items() if name in self._shared}
        return firsts | {name: tensor for name, tensor in own.items() if name not in self._shared}

    def export(self, weights: Weights) -> dict[str, Tensor]:
        """The whole model under ``weights`` with timm's names, as the timm model's ``load_state_dict`` takes it."""
        state = {**self.module.state_dict(), **weights.export()}
        state |= {name: state[first] for name, first in self._shared.items()}
        split = [name for name, module in self.module.named_modules() if isinstance(module, SplitQKV)]
        for owner in split:
            for kind in ("weight", "bias"):
                if f"{owner}.q.{kind}" in state:
                    state[f"{owner}.{kind}"] = torch.cat([state.pop(f"{owner}.{part}.{kind}") for part in "qkv"])
        return state

    def adapter(self, start: Weights, factors: str, seed: int) -> Adapter[Any]:
        """Trainable parameters for one task, beginning at ``start`` exactly.

        Args:
            start: W_start.
            factors: "AB", or "B" to train only B of LoRA.
            seed: of the draw of A.

        Raises:
            UserError: the adapter has no factors of which one could be kept fixed.
        """
        options = self.config.adapter_section
        if factors not in options.factors:
            raise UserError(
                f"protocol {self.config.key}: adapter={self.config.adapter} has no LoRA factor to keep fixed"
            )
        return self._adapter.begin(start, options, factors, seed)
