"""A timm model, which of its weights are adapted, and the forward pass as a function of those weights.

Training runs on dense weights: the forward is ``functional_call(backbone, W)`` with W = W_start + scale * B A under
LoRA, or W itself in full fine-tuning. So perturbation, penalty, Fisher and the gradients of data-driven rules share
one path, and folding an adapter into the base is just a new W_start. PEFT gives targets, initialisation and scaling.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Protocol

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bench.config import ImageConfig, ProtocolConfig, weights_file
from bench.errors import UserError, unknown
from bench.seeds import derive
from bench.weights import Weights


class SplitQKV(nn.Module):
    """timm's fused ``attn.qkv`` as three Linears that adapters can target one by one; bit-equal to the fused one."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        size = fused.out_features // 3
        for i, name in enumerate("qkv"):
            part = nn.Linear(fused.in_features, size, bias=fused.bias is not None, device="meta")  # no random draw
            part.weight = nn.Parameter(fused.weight.detach()[i * size : (i + 1) * size].clone())
            if fused.bias is not None:
                part.bias = nn.Parameter(fused.bias.detach()[i * size : (i + 1) * size].clone())
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(b, tokens, D) to (b, tokens, 3 D)."""
        return torch.cat([part(x) for part in self.children()], dim=-1)


class Backbone:
    """The pretrained model without its head.

    Attributes:
        pretrained: theta_0, the adapted weights as the checkpoint has them.
        dim: D, the size of a feature vector.
        classifiers: how names of the model's own classifier begin, which checkpoints may hold and we do not use.
    """

    def __init__(self, protocol: ProtocolConfig, image: ImageConfig, device: str = "cpu", seed: int = 0) -> None:
        config = protocol.backbone
        if not timm.is_model(config.model):
            raise unknown("timm model", config.model, timm.list_models(), f"protocol {protocol.key}: backbone.model")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive("backbone", seed))  # only seen where there is no checkpoint
            try:
                module = timm.create_model(config.model, pretrained=False, num_classes=0, **config.options)
            except TypeError as error:
                raise UserError(f"protocol {protocol.key}: backbone.options: {error}") from None
        told = (module.pretrained_cfg or {}).get("classifier", "head")
        self.classifiers = tuple(f"{name}." for name in ([told] if isinstance(told, str) else told))
        if config.weights is not None:
            from safetensors.torch import load_file

            state = load_file(weights_file(protocol))
            try:
                module.load_state_dict({n: w for n, w in state.items() if not n.startswith(self.classifiers)})
            except RuntimeError as error:
                raise UserError(
                    f"protocol {protocol.key}: backbone.weights: {weights_file(protocol)} does not fit "
                    f"{config.model}: {str(error).splitlines()[1].strip()}"
                ) from None
        for part in module.modules():
            if isinstance(getattr(part, "qkv", None), nn.Linear):
                part.qkv = SplitQKV(part.qkv)
        self.module: nn.Module = module.eval().requires_grad_(False).to(device)
        self.config, self.device, self.dim = protocol, device, int(module.num_features)
        self._mean = torch.tensor(image.mean, device=device).view(-1, 1, 1)
        self._std = torch.tensor(image.std, device=device).view(-1, 1, 1)
        names = [n for n, _ in self.module.named_parameters()]
        if protocol.adapter.kind == "lora":
            names = [n for n in names if re.fullmatch(rf"{self._targets}\.weight", n)]
        parameters = dict(self.module.named_parameters())
        self.pretrained = Weights.of({n: parameters[n] for n in names})

    @property
    def _targets(self) -> str:
        return rf".*\.qkv\.({'|'.join(self.config.adapter.targets)})"

    def pixels(self, x: Tensor) -> Tensor:
        """uint8 (b, C, H, W) to what the model was pretrained on."""
        return (x.float() / 255 - self._mean) / self._std

    def features(self, weights: Weights, x: Tensor) -> Tensor:
        """Features (b, D) of uint8 images (b, C, H, W) under the adapted weights; differentiable in them."""
        return functional_call(self.module, weights.tensors(), (self.pixels(x),))

    def own_names(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors under timm's names as this module has them: q, k and v of a fused ``qkv`` apart."""
        split = {name for name, module in self.module.named_modules() if isinstance(module, SplitQKV)}
        own: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            owner, _, kind = name.rpartition(".")
            if owner in split:
                own |= {f"{owner}.{part}.{kind}": x for part, x in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                own[name] = tensor
        return own

    def export(self, weights: Weights) -> dict[str, Tensor]:
        """The whole model under ``weights`` with timm's names, as the timm model's ``load_state_dict`` takes it."""
        state = {**self.module.state_dict(), **weights.export()}
        split = [name for name, module in self.module.named_modules() if isinstance(module, SplitQKV)]
        for owner in split:
            for kind in ("weight", "bias"):
                if f"{owner}.q.{kind}" in state:
                    state[f"{owner}.{kind}"] = torch.cat([state.pop(f"{owner}.{part}.{kind}") for part in "qkv"])
        return state

    def adapter(self, start: Weights, factors: str, seed: int) -> Adapter:
        """Trainable parameters for one task, beginning at ``start`` exactly.

        Args:
            start: W_start.
            factors: "AB", or "B" to train only B of LoRA (full fine-tuning has no factors to fix: an error).
            seed: of the draw of A.
        """
        if self.config.adapter.kind == "full":
            if factors != "AB":
                raise UserError(f"protocol {self.config.key}: adapter.kind=full has no LoRA factor to keep fixed")
            return Full(start)
        return LoRA(self._peft_factors(seed), start, self.config.adapter.scale, factors)

    def _peft_factors(self, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """A (r, in) and B (out, r) of every adapted tensor as PEFT initialises them (A Kaiming-uniform, B zero)."""
        from peft import LoraConfig, inject_adapter_in_model

        adapter = self.config.adapter
        lora = LoraConfig(r=adapter.rank, lora_alpha=adapter.scale * adapter.rank, target_modules=self._targets)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = inject_adapter_in_model(lora, copy.deepcopy(self.module))
        layers = {n: model.get_submodule(n.removesuffix(".weight")) for n in self.pretrained.layout.names}
        return {n: (m.lora_A["default"].weight.data, m.lora_B["default"].weight.data) for n, m in layers.items()}


class Adapter(Protocol):
    """What an optimiser changes, and the dense weights that it stands for."""

    parameters: list[Tensor]

    def weights(self) -> Weights:
        """W, with its graph."""
        ...


class Full:
    """Full fine-tuning: W itself."""

    def __init__(self, start: Weights) -> None:
        self._vector = start.vector.detach().clone().requires_grad_()
        self._layout = start.layout
        self.parameters = [self._vector]

    def weights(self) -> Weights:
        """W."""
        return Weights(self._vector, self._layout)


class LoRA:
    """W = W_start + scale * B A for every adapted tensor; tensors of one shape are one batched product."""

    def __init__(
        self, factors: dict[str, tuple[Tensor, Tensor]], start: Weights, scale: float, trained: str = "AB"
    ) -> None:
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, shape in zip(start.layout.names, start.layout.shapes, strict=True):
            groups.setdefault(shape, []).append(name)
        self._start, self._scale, self._groups = start, scale, list(groups.values())
        self.A = [torch.stack([factors[n][0] for n in names]).requires_grad_("A" in trained) for names in self._groups]
        self.B = [torch.stack([factors[n][1] for n in names]).requires_grad_("B" in trained) for names in self._groups]
        self.parameters = [p for p in (*self.A, *self.B) if p.requires_grad]

    def weights(self) -> Weights:
        """W_start + scale * B A."""
        products = [torch.bmm(b, a) for a, b in zip(self.A, self.B, strict=True)]
        if len(products) == 1:
            delta = products[0].reshape(-1)
        else:
            by_name = {
                n: p for names, ps in zip(self._groups, products, strict=True) for n, p in zip(names, ps, strict=True)
            }
            delta = torch.cat([by_name[n].reshape(-1) for n in self._start.layout.names])
        return Weights(self._start.vector + self._scale * delta, self._start.layout)


class Frozen:
    """No adaptation: heads only."""

    def __init__(self, start: Weights) -> None:
        self._start = start
        self.parameters: list[Tensor] = []

    def weights(self) -> Weights:
        """W_start."""
        return self._start
