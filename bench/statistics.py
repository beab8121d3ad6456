"""What rules ask of the data at a point in weight space: diagonal Fisher information.

Estimators differ by orders of magnitude, so each has a name and no constant is ever shared between them:

* ``empirical``: mean over samples of (d log p_y / dW)^2 with the true label y. Per sample: the gradient is summed over
  tokens *before* squaring, so the answer does not depend on the batch size.
* ``exact``: mean over samples of sum_c p_c (d log p_c / dW)^2, all classes of the head (one pass a class).

Evaluation mode, float32, no perturbation, no autocast; logits divided by the training temperature, as in the loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from bench.backbone import Backbone
from bench.heads import Head
from bench.weights import Weights

KINDS = ("empirical", "exact")
PASS_IMAGES = 256  #: images a forward and backward pass
HELD = 2**19  #: per-sample gradient entries held at once, in numbers (2 MB: they are made, squared and summed in cache)


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
) -> Weights:
    """Diagonal Fisher (P,) of the adapted weights: a mean over the samples given.

    Args:
        backbone: gives the forward pass.
        weights: the point at which it is taken.
        head: the current task's head (classes, D).
        x: uint8 images (n, C, H, W).
        y: labels within the head (n,).
        kind: see the module's docstring.
        temperature: logits are divided by it.

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown Fisher kind {kind!r}; known: {', '.join(KINDS)}")
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
            targets = [(torch.full_like(ys, c), p[:, c]) for c in range(p.shape[1])]
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
    return Weights(torch.cat([total[n].reshape(-1) for n in shapes]).to(weights.vector) / len(x), weights.layout)


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
