"""Diagonal Fisher information of the adapted weights.

Fisher estimators differ by orders of magnitude, so each has a name and no constant is ever shared between them. Per
sample (the gradient summed over tokens *before* squaring, so the answer does not depend on the batch size):

* ``empirical``: mean over samples of (d log p_y / dW)^2 with the true label y.
* ``exact``: mean over samples of sum_c p_c (d log p_c / dW)^2, all classes of the head (one pass a class).
* ``mammoth``: sum of p_y (d log p_y)^2 over batches * batch size (Mammoth's ewc_on; a short last batch counts full).

Per batch of the training size (squares of sums: they depend on the batch size, and are here to imitate others):

* ``batchmean``: mean over batches of (d mean CE)^2 with the true labels (Avalanche).
* ``batchmean_seen``: the same as CoFiMA's authors ran it (IemProg/CoFiMA): all heads seen under one softmax, all images
  of the task once, in a random order and in their training views.
* ``argmax_batch``: sum of (d mean CE)^2 * batch size / samples, with predicted labels (BECAME).
* ``sqrtp_batch``: sum of (d sum_{n,c} sqrt(p_c) log p_c)^2 / samples, sqrt(p) held fixed (FusionBench).

Evaluation mode always (the references that run in training mode, CoFiMA and BECAME, differ by dropout and by batch
normalisation, where a model has any), float32, no perturbation, no autocast; logits divided by the training
temperature, as in the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, nll_loss

from bench.common.seeds import torch_rng
from bench.method.tools.fisher_kinds import LABELLED
from bench.method.weights import Layout, Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate
from bench.statistics.base import Place, Statistic
from bench.statistics.named import Named, check_covers, laid_out

PER_SAMPLE = ("empirical", "exact", "mammoth")
OF_IMAGES = (*PER_SAMPLE, "batchmean", "argmax_batch", "sqrtp_batch")  #: of given images and the current head
SEEN = "batchmean_seen"
KINDS = (*OF_IMAGES, SEEN)
PASS_IMAGES = 256  #: images a forward and backward pass
HELD = 2**19  #: per-sample gradient entries held at once, in numbers (2 MB: they are made, squared and summed in cache)


class Fisher(Statistic[Weights]):
    """Of the current head's loss: Weights, each entry a mean of squared derivatives."""

    key = "fisher"
    kinds = KINDS

    def reads(self, kind: str) -> Literal["images", "labels"]:
        """Labels, where the true ones are taken."""
        return "labels" if kind in LABELLED else "images"

    def identity(self, place: Place) -> list[Any]:
        """The head, the images, the estimator, and the batch size of the kinds that have one."""
        train = place.protocol.train
        batch = [] if place.kind in PER_SAMPLE[:2] else [train.batch]
        data = [place.task.content, len(place.task.train), place.kind, place.samples, place.run_seed]
        if place.kind == SEEN:
            head, augment = concatenate(place.open_heads), place.protocol.augment.model_dump(mode="json")
            return [head.digest(), *data, train.temperature, *batch, augment]
        return [place.head.digest(), *data, train.temperature, *batch]

    def compute(self, place: Place) -> Weights:
        """Over a sample that is as even over classes as it can be; over all images for ``batchmean_seen``."""
        if place.kind == SEEN:
            return _of_training_views(place)
        rng = torch_rng("fisher", place.run_seed, place.task.content)
        index = balanced_sample(place.task.train, place.stream.train_columns, place.samples, rng)
        train = place.protocol.train
        return diagonal_fisher(
            place.backbone, place.at, place.head, *place.images(index), place.kind, train.temperature, train.batch
        )

    def zero(self, value: Weights) -> Weights:
        """A flat loss."""
        return value.zeros()

    def cast(self, value: Weights, dtype: torch.dtype, device: str) -> Weights:
        """In the weights' dtype."""
        return value.map(lambda v: v.to(device, dtype))

    def pack(self, value: Weights) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """One vector."""
        return {"fisher": value.vector}, {}

    def unpack(self, tensors: dict[str, Tensor], header: dict[str, Any], like: Weights) -> Weights:
        """In the layout of the weights."""
        return Weights(tensors["fisher"].to(like.vector), like.layout)

    def check_file(self, file: Named, model: Named, names: Sequence[str]) -> None:
        """A tensor of the weight's shape under the weight's name."""
        check_covers(file, model, names)

    def read_file(self, file: Named, layout: Layout, dtype: torch.dtype) -> Weights:
        """Nothing negative."""
        return laid_out(file, layout, dtype, signed=False)


STATISTIC = Fisher()


def balanced_sample(index: Tensor, columns: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` of ``index``, as even over classes as they allow: round by round, one of each class."""
    order = torch.randperm(len(index), generator=generator).to(index.device)
    shuffled = index[order]
    classes = columns[shuffled]
    rank = torch.zeros_like(classes)
    for c in classes.unique():
        mine = classes == c
        rank[mine] = torch.arange(int(mine.sum()), device=rank.device)
    return shuffled[torch.argsort(rank, stable=True)[:count]]


def diagonal_fisher(
    backbone: Backbone,
    weights: Weights,
    head: Head,
    x: Tensor,
    y: Tensor,
    kind: str = "empirical",
    temperature: float = 1.0,
    batch: int = 64,
) -> Weights:
    """Diagonal Fisher (P,) of the adapted weights over the samples given.

    Args:
        backbone: gives the forward pass.
        weights: the point at which it is taken.
        head: the current task's head (classes, D).
        x: uint8 images (n, C, H, W).
        y: labels within the head (n,).
        kind: see the module's docstring.
        temperature: logits are divided by it.
        batch: the batch size of the kinds that depend on it; the others ignore it.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in OF_IMAGES:
        raise ValueError(f"unknown Fisher kind {kind!r}; known: {', '.join(OF_IMAGES)}")
    if kind not in PER_SAMPLE:
        return _batch_squares(backbone, weights, head, x, y, kind, temperature, batch)
    modules = dict(backbone.module.named_modules())
    shapes = dict(zip(weights.layout.names, weights.layout.shapes, strict=True))
    linears = {}
    for name in shapes:
        owner = modules[name.rpartition(".")[0]]
        if isinstance(owner, nn.Linear):
            linears[name] = owner
    others = [n for n in shapes if n not in linears]
    vmapped = sum(size for name, size in zip(shapes, weights.layout.sizes, strict=True) if name in others)
    chunk = max(1, min(PASS_IMAGES, 64 * HELD // max(1, vmapped)))
    total = {name: torch.zeros(shape, device=weights.vector.device) for name, shape in shapes.items()}

    def log_likelihood(features: Tensor, target: Tensor) -> Tensor:
        return torch.log_softmax(head(features) / temperature, -1).gather(-1, target[:, None])[:, 0]

    for xs, ys in zip(x.split(chunk), y.split(chunk), strict=True):
        if kind == "empirical":
            targets = [(ys, torch.ones(len(ys), device=xs.device))]
        else:
            with torch.no_grad():
                p = torch.softmax(head(backbone.features(weights, xs)) / temperature, -1)
            of_label = [(ys, p.gather(1, ys[:, None])[:, 0])]
            targets = of_label if kind == "mammoth" else [(torch.full_like(ys, c), p[:, c]) for c in range(p.shape[1])]
        for target, weight in targets:
            for name, squares in _linear_squares(
                backbone, weights, linears, xs, target, weight, log_likelihood
            ).items():
                total[name] += squares
            if others:
                for name, squares in _other_squares(
                    backbone, weights, others, xs, target, weight, log_likelihood
                ).items():
                    total[name] += squares
    divisor = math.ceil(len(x) / batch) * batch if kind == "mammoth" else len(x)
    return Weights(torch.cat([total[n].reshape(-1) for n in shapes]).to(weights.vector) / divisor, weights.layout)


def _of_training_views(place: Place) -> Weights:
    """Mean over batches of (d mean CE)^2: see the module's docstring."""
    train, index, columns = place.protocol.train, place.task.train, place.stream.train_columns
    named = (place.run_seed, place.task.content)
    order = torch.randperm(len(index), generator=torch_rng("fisher", *named)).to(index.device)
    batches = index[order].split(train.batch)
    head, total = concatenate(place.open_heads), torch.zeros_like(place.at.vector)
    for step, batch in enumerate(batches):
        pixels = place.backbone.transform.augmented(place.stream.train_images[batch], "fisher", *named, step)
        with torch.enable_grad():
            point = place.at.map(lambda v: v.detach().clone().requires_grad_())
            loss = cross_entropy(head(place.backbone.forward(point, pixels)) / train.temperature, columns[batch])
        total += torch.autograd.grad(loss, point.vector)[0].square()
    return Weights(total / len(batches), place.at.layout)


def _batch_squares(
    backbone: Backbone, weights: Weights, head: Head, x: Tensor, y: Tensor, kind: str, temperature: float, batch: int
) -> Weights:
    """Squares of batch gradients: see the module's docstring."""
    total = torch.zeros_like(weights.vector)
    for xs, ys in zip(x.split(batch), y.split(batch), strict=True):
        with torch.enable_grad():
            point = weights.map(lambda v: v.detach().clone().requires_grad_())
            log_p = torch.log_softmax(head(backbone.features(point, xs)) / temperature, -1)
            if kind == "sqrtp_batch":
                told = (log_p.detach().exp().sqrt() * log_p).sum()
            else:
                told = nll_loss(log_p, ys if kind == "batchmean" else log_p.argmax(-1))
        g = torch.autograd.grad(told, point.vector)[0]
        scale = {"batchmean": len(x) / math.ceil(len(x) / batch), "argmax_batch": len(xs), "sqrtp_batch": 1}[kind]
        total += g.square() * scale
    return Weights(total / len(x), weights.layout)


Likelihood = Callable[[Tensor, Tensor], Tensor]


def _linear_squares(
    backbone: Backbone, weights: Weights, linears: dict[str, nn.Linear], x: Tensor, y: Tensor, w: Tensor, ll: Likelihood
) -> dict[str, Tensor]:
    """sum_n w_n (d ll_n / dW)^2 for weights and biases of Linear layers: per-sample gradients as an einsum of output
    gradients and inputs, one backward pass for the whole batch.
    """
    if not linears:
        return {}
    seen: dict[nn.Linear, tuple[Tensor, Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        seen[module] = (inputs[0].detach(), output)

    hooks = [module.register_forward_hook(keep) for module in set(linears.values())]
    try:
        with torch.enable_grad():
            point = weights.map(lambda v: v.detach().clone().requires_grad_())
            likelihood = ll(backbone.features(point, x), y).sum()
    finally:
        for hook in hooks:
            hook.remove()
    silent = [n for n, module in linears.items() if module not in seen]
    if silent:
        raise RuntimeError(f"no statistics for {silent}: these Linear layers are never called as modules")
    gradients = torch.autograd.grad(likelihood, [output for _, output in seen.values()])
    squares = {}
    for (module, (inputs, _)), g in zip(seen.items(), gradients, strict=True):
        g, a = (
            g.flatten(1, -2) if g.dim() > 2 else g[:, None],
            inputs.flatten(1, -2) if inputs.dim() > 2 else inputs[:, None],
        )
        for name in (n for n, m in linears.items() if m is module):
            if name.endswith(".bias"):
                squares[name] = w @ g.sum(1).square()
                continue
            part = max(1, HELD // (g.shape[-1] * a.shape[-1]))
            squares[name] = sum(
                (w_ @ torch.einsum("bto,bti->boi", g_, a_).square_().flatten(1)).view(g.shape[-1], a.shape[-1])
                for g_, a_, w_ in zip(g.split(part), a.split(part), w.split(part), strict=True)
            )
    return squares


def _other_squares(
    backbone: Backbone, weights: Weights, names: list[str], x: Tensor, y: Tensor, w: Tensor, ll: Likelihood
) -> dict[str, Tensor]:
    """The same for everything that is not a Linear (norms, embeddings, convolutions), by ``vmap``."""
    fixed = weights.tensors()
    free = {n: fixed.pop(n).detach() for n in names}
    pixels = backbone.pixels(x)

    def one(free: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        features = functional_call(backbone.module, {**fixed, **free}, (image[None],))
        return ll(features, label[None])[0]

    gradients = vmap(grad(one), in_dims=(None, 0, 0))(free, pixels, y)
    return {n: torch.einsum("b...,b->...", g.square(), w) for n, g in gradients.items()}
