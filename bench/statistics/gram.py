"""Gram matrices: second moments of what the layers of the adapted weights are fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from bench.common.errors import UserError
from bench.common.seeds import torch_rng
from bench.method import Gram
from bench.method.weights import Layout, Weights
from bench.model.backbone import Backbone
from bench.statistics.base import Place, Statistic
from bench.statistics.named import Named, check_values

PASS_IMAGES = 256  #: images a forward pass


class GramMatrices(Statistic[dict[str, Gram]]):
    """By adapted tensor; a tensor that has none is not in the dict."""

    key = "gram"

    def identity(self, place: Place) -> list[Any]:
        """The images: neither heads nor labels have a say."""
        return [place.task.content, len(place.task.train), place.samples, place.run_seed]

    def compute(self, place: Place) -> dict[str, Gram]:
        """Over random training images."""
        train = place.task.train
        rng = torch_rng("gram", place.run_seed, place.task.content)
        order = torch.randperm(len(train), generator=rng)[: place.samples].to(train.device)
        return gram(place.backbone, place.at, place.stream.train_images[train[order]])

    def zero(self, value: dict[str, Gram]) -> dict[str, Gram]:
        """The same: inputs do not depend on the loss."""
        return value

    def cast(self, value: dict[str, Gram], dtype: torch.dtype, device: str) -> dict[str, Gram]:
        """Float64 whatever the weights are."""
        return {name: Gram(g.sum.to(device), g.rows) for name, g in value.items()}

    def pack(self, value: dict[str, Gram]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The matrices under the weights' names, and their rows."""
        return {name: g.sum for name, g in value.items()}, {"rows": {name: g.rows for name, g in value.items()}}

    def unpack(self, tensors: dict[str, Tensor], header: dict[str, Any], like: Weights) -> dict[str, Gram]:
        """On the device of the weights."""
        device = like.vector.device
        return {name: Gram(tensors[name].to(device), rows) for name, rows in header["rows"].items()}

    def check_file(self, file: Named, model: Named, names: Sequence[str]) -> None:
        """X^T X (or its diagonal) under the weight's name, and how many rows X has under ``<name>.rows``."""
        for name, spec in file.specs.items():
            weight = name.removesuffix(".rows")
            if weight not in model.specs:
                raise UserError(f"{file.where}: {weight!r} is no weight of {model.where}")
            if f"{weight}.rows" not in file.specs or weight not in file.specs:
                raise UserError(f"{file.where}: {weight!r} and '{weight}.rows' (rows of X) belong together")
            size = model.specs[weight].shape[-1:]
            if name == weight and spec.shape not in (size, size * 2):
                raise UserError(f"{file.where}: {name!r} has shape {spec.shape}; X^T X would be {size * 2}")

    def read_file(self, file: Named, layout: Layout, dtype: torch.dtype) -> dict[str, Gram]:
        """Of the merged tensors that the file has something for; symmetric, nothing negative on the diagonal."""
        names = [name for name in layout.names if name in file.specs]
        return {name: _read(file, name, x.double()) for name, x in zip(names, file.tensors(names), strict=True)}


STATISTIC = GramMatrices()


def _read(file: Named, name: str, X: Tensor) -> Gram:
    where = f"{file.where}: {name!r}"
    (rows,) = file.tensors([f"{name}.rows"])
    check_values(X, where)
    diagonal, mirrored = (X, X) if X.dim() == 1 else (X.diagonal(), X.mT)
    if bool((diagonal < 0).any()) or not torch.allclose(X, mirrored, 0, 1e-3 * float(diagonal.max())):
        raise UserError(f"{where} is not symmetric with a diagonal of at least 0, as X^T X is")
    if rows.numel() != 1 or not float(rows) >= 1 or float(rows) % 1:
        raise UserError(f"{where}.rows must be one whole number, at least 1")
    return Gram(X, int(rows))


def gram(backbone: Backbone, weights: Weights, x: Tensor) -> dict[str, Gram]:
    """Second moments of what the layers of the adapted weights are fed, one pass over the images.

    Args:
        backbone: gives the forward pass.
        weights: the point at which they are taken.
        x: uint8 images (n, C, H, W).

    Returns:
        For the weight of every Linear X^T X (d_in, d_in), for that of every LayerNorm the column sums of squares (d,)
        of its normalised input; float64.

    Raises:
        RuntimeError: a layer was never called as a module (functional attention), so nothing was seen of it.
    """
    modules = dict(backbone.module.named_modules())
    layers = {
        name: modules[name.removesuffix(".weight")]
        for name in weights.layout.names
        if name.endswith(".weight") and isinstance(modules.get(name.removesuffix(".weight")), nn.Linear | nn.LayerNorm)
    }
    sums: dict[str, Tensor] = {}
    rows: dict[str, int] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        a = inputs[0]
        if isinstance(module, nn.LayerNorm):
            a = layer_norm(a, module.normalized_shape, eps=module.eps).flatten(0, -2).double()
            found = a.square().sum(0)
        else:
            a = a.flatten(0, -2)
            a = a.double()  # in float32 a rank-deficient sum would have negative eigenvalues
            found = a.T @ a
        sums[name] = sums[name] + found if name in sums else found
        rows[name] = rows.get(name, 0) + len(a)

    def hook(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: keep(name, module, inputs)

    hooks = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        with torch.inference_mode():
            for xs in x.split(PASS_IMAGES):
                backbone.features(weights, xs)
    finally:
        for handle in hooks:
            handle.remove()
    silent = sorted(set(layers) - set(sums))
    if silent:
        raise RuntimeError(f"no statistics for {silent}: these layers are never called as modules")
    return {name: Gram(sums[name].clone(), rows[name]) for name in layers}
