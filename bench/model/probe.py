"""What a model is, as far as one forward pass tells: the size of its features, and whether it is fit for the harness.

The pass costs nothing on torch's ``meta`` device, where tensors have shapes and no values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bench.common.errors import UserError
from bench.config.schema import ImageConfig


class _Draws(TorchDispatchMode):
    """Notes every operation that draws random numbers while it is in force."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.operations.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def feature_size(module: nn.Module, image: ImageConfig, device: str, where: str) -> int:
    """D of the features (images, D) that a model in evaluation mode gives for images as it is shown them.

    Measured, since timm's ``num_features`` is the size before the hidden layer that some heads have (MobileNetV3).

    Args:
        module: the model without a head, its parameters on ``device``.
        image: what it is shown.
        device: any, ``meta`` included.
        where: how a message begins.

    Raises:
        UserError: it does not take such images, gives something else than a vector an image, or draws random numbers.
    """
    pixels = torch.zeros(2, image.channels, image.size, image.size, device=device)
    try:
        # The other kernels of attention could draw, so torch counts them among those that do.
        with torch.random.fork_rng(devices=[]), _Draws() as draws, sdpa_kernel(SDPBackend.MATH):
            features = module(pixels)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        shape = f"{image.channels} x {image.size} x {image.size}"
        why = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"{where} does not take images of {shape} ({type(error).__name__}: {why})") from None
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(pixels):
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"{where} gives {got} for two images, and not a vector each; backbone.options may pool them (global_pool)"
        )
    if draws.operations:
        raise UserError(
            f"{where} draws random numbers in evaluation mode ({', '.join(sorted(set(draws.operations)))}), so that "
            "its predictions would change from one time to the next"
        )
    return features.shape[1]


def kept_tensors(module: nn.Module) -> list[dict[Any, Any]]:
    """Dicts in which a model has kept tensors during a forward pass, to take them from there at the next.

    LeViT and its relatives keep what they made of their position biases, in evaluation mode alone. A forward pass
    under other weights would not see them.
    """
    held = (value for part in module.modules() for name, value in vars(part).items() if not name.startswith("_"))
    return [value for value in held if isinstance(value, dict) and any(isinstance(x, Tensor) for x in value.values())]
