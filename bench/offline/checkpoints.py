"""Named tensors from elsewhere: safetensors files, PEFT LoRA adapters, mappings in memory. Nothing is ever unpickled.

Names, shapes and dtypes are known before any value is read; values are read tensor by tensor.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bench.common.errors import UserError

#: what merging computes with; anything else is copied (integers) or refused
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
#: of a LoRA configuration: what makes the adapter more than W + scale * B A
_BEYOND = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "target_parameters",
    "trainable_token_indices", "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
#: initialisations that leave W as it was; the others (PiSSA, OLoRA, CorDA, LoftQ, ...) subtract something from it
_KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


class Spec(NamedTuple):
    """What is known of a tensor without reading it."""

    dtype: str  #: torch's name; of integers, in lower case, safetensors' or torch's
    shape: tuple[int, ...]

    @property
    def floating(self) -> bool:
        """Whether it can be merged."""
        return self.dtype in FLOATS.values()

    @property
    def counting(self) -> bool:
        """Whether it is integer or boolean."""
        return re.fullmatch(r"bool|u?int\d+|[iu]\d+", self.dtype) is not None


class Source(Protocol):
    """Tensors that can be asked for one at a time."""

    complete: ClassVar[bool]  #: False: what is not in it is as in the pretrained model
    where: str  #: what an error names
    specs: dict[str, Spec]

    def tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Of these names, in this order."""
        ...


class InMemory:
    """A mapping, such as a state dict."""

    complete: ClassVar[bool] = True

    def __init__(self, given: Mapping[str, Tensor], where: str) -> None:
        self.where, self._given = where, given
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise UserError(f"{where}: {name!r} is a {type(tensor).__name__}, not a tensor")
        self.specs = {n: Spec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in given.items()}

    def tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Of these names, in this order."""
        return (self._given[name].detach() for name in names)


class File:
    """A safetensors file.

    Raises:
        UserError: it is not there, not whole, or no safetensors file.
    """

    complete: ClassVar[bool] = True

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        if path.suffix in _PICKLES:
            raise UserError(f"{path}: pickles are never loaded; convert it with safetensors.torch.save_file")
        if path.is_dir():
            raise UserError(f"{path}: a folder without adapter_config.json; name a safetensors file")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self.specs = {n: Spec(_dtype(s.get_dtype()), tuple(s.get_shape())) for n, s in parts.items()}
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from None

    def tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Of these names, in this order."""
        try:
            with safe_open(self.path, framework="pt") as file:
                for name in names:
                    yield file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self.path}: not a whole safetensors file ({' '.join(str(error).split())}); write it again")


def _dtype(code: str) -> str:
    return FLOATS.get(code, code.lower())


class PeftLoRA:
    """A PEFT LoRA adapter folded onto the pretrained tensors: W + scale * B A, in float32 (float64 where one is).

    Tensors that were trained beside it (``modules_to_save``, biases) are taken whole.

    Raises:
        UserError: another kind of adapter, one that does not belong to this model, or a broken one.
    """

    complete: ClassVar[bool] = False

    def __init__(self, folder: Path, pretrained: Source) -> None:
        self.where, self._pretrained = str(folder), pretrained
        self._config = config = self._read_config(folder)
        if not (folder / "adapter_model.safetensors").is_file() and (folder / "adapter_model.bin").is_file():
            raise UserError(
                f"{folder}: adapter_model.bin is a pickle, never loaded; save it with safe_serialization=True"
            )
        self._file = File(folder / "adapter_model.safetensors")
        self._factors: dict[str, dict[str, str]] = {}
        self._whole: dict[str, str] = {}
        for key in self._file.specs:
            name = key.removeprefix("base_model.model.")
            match = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
            if match:
                self._factors.setdefault(f"{match[1]}.weight", {})[match[2]] = key
            elif "lora_" in name:
                raise UserError(f"{folder}: {key}: only LoRA of linear and convolution layers is folded")
            else:
                self._whole[name.replace(".base_layer.", ".")] = key
        self._transposed = bool(config.get("fan_in_fan_out"))
        self.specs = {name: self._file.specs[key] for name, key in self._whole.items()}
        self.specs |= {name: self._folded(name) for name in self._factors}

    def tensors(self, names: Iterable[str]) -> Iterator[Tensor]:
        """Of these names, in this order; of those that the adapter does not change, the pretrained ones."""
        for name in names:
            if name in self._whole:
                yield from self._file.tensors([self._whole[name]])
                continue
            (W,) = self._pretrained.tensors([name])
            if name in self._factors:
                dtype = getattr(torch, self.specs[name].dtype)
                A, B = (x.to(W.device, dtype).flatten(1) for x in self._file.tensors(self._keys(name)))
                delta = self._scale(name, len(A)) * (B @ A)
                W = W.to(dtype) + (delta.T if self._transposed else delta).reshape(W.shape)
            yield W

    def _keys(self, name: str) -> list[str]:
        return [self._factors[name][factor] for factor in "AB"]

    def _scale(self, name: str, rank: int) -> float:
        """As PEFT has it: the first pattern that the layer's name ends with, else the one alpha of all."""
        layer, alpha = name.removesuffix(".weight"), self._config.get("lora_alpha", 8)
        for pattern, own in (self._config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):
                alpha = own
                break
        return float(alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank))

    def _folded(self, name: str) -> Spec:
        if len(self._factors[name]) < 2:
            raise UserError(f"{self.where}: {name}: lora_A or lora_B is missing; save the adapter again")
        W = self._pretrained.specs.get(name)
        if W is None or not W.floating:
            raise UserError(
                f"{self.where}: adapts {name}, which {self._pretrained.where} does not have; "
                "name the model that the adapter was trained on"
            )
        A, B = (self._file.specs[key] for key in self._keys(name))
        folded = (B.shape[0], math.prod(A.shape[1:]))
        if math.prod(B.shape[1:]) != A.shape[0] or folded != _matrix(W.shape, self._transposed):
            raise UserError(f"{self.where}: B {B.shape} times A {A.shape} does not fit {name}, which is {W.shape}")
        wide = "float64" in (A.dtype, B.dtype, W.dtype)
        return Spec("float64" if wide else "float32", W.shape)

    @staticmethod
    def _read_config(folder: Path) -> dict[str, Any]:
        try:
            config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            kind = config["peft_type"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder}/adapter_config.json: not a PEFT configuration; save the adapter again") from None
        if kind != "LORA":
            raise UserError(f"{folder}: a {kind} adapter; only LORA is folded (merge_and_unload it and save the model)")
        for option in _BEYOND:
            if config.get(option):
                raise UserError(f"{folder}: {option} is not folded here; merge_and_unload it and save the model")
        if (way := config.get("init_lora_weights", True)) not in _KEEPS_BASE:
            raise UserError(
                f"{folder}: init_lora_weights={way!r} changed the base weights; save it with "
                "path_initial_model_for_weight_conversion"
            )
        return dict(config)


def _matrix(shape: tuple[int, ...], transposed: bool) -> tuple[int, ...]:
    """The weight as (outputs, inputs); of a convolution the inputs are channels and taps."""
    return shape[::-1] if transposed else (shape[0], math.prod(shape[1:])) if shape else ()


def open_source(given: Mapping[str, Tensor] | str | os.PathLike[str], where: str, base: Source | None = None) -> Source:
    """A mapping, a safetensors file, or a PEFT adapter of ``base``.

    Args:
        given: what a user handed in.
        where: the name of a mapping in errors; a file has its own.
        base: the pretrained tensors; without them adapters are refused.

    Raises:
        UserError: it cannot be read, or is nothing of the three.
    """
    if isinstance(given, Mapping):
        return InMemory(given, where)
    if not isinstance(given, str | os.PathLike):
        raise UserError(f"{where}: a {type(given).__name__}; give named tensors or a path")
    path = Path(given).expanduser()
    if (path / "adapter_config.json").is_file():
        if base is None:
            raise UserError(f"{path}: a PEFT adapter can only be a task; name a safetensors file")
        return PeftLoRA(path, base)
    return File(path)


def fold_adapter(folder: Path, pretrained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that a PEFT LoRA adapter changes, folded onto the pretrained ones, under their names.

    Raises:
        UserError: as :class:`PeftLoRA`.
    """
    adapter = PeftLoRA(folder, InMemory(pretrained, "the pretrained model"))
    return dict(zip(adapter.specs, adapter.tensors(adapter.specs), strict=True))
