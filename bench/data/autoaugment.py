"""AutoAugment (arXiv:1805.09501) of a batch: every image draws its own sub-policy, its own coins and its own signs.

torchvision applies one draw to all that it is given. Here the images that drew the same operation go through
torchvision's kernel together, so that a batch costs about as many calls as a policy has operations, on any device.
Policies, magnitudes, nearest-pixel geometry and black corners are torchvision's.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict

import torch
from torch import Tensor

BINS = 10  #: a policy's magnitudes are indices into so many equal steps


def auto_augment(x: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Augmented images.

    Args:
        x: uint8 (b, C, H, W) with 1 or 3 channels; not changed.
        policy: ``imagenet``, ``cifar10`` or ``svhn``.
        generator: on the CPU; it alone decides the draws.

    Returns:
        uint8 (b, C, H, W) on the device of ``x``.
    """
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    policies = AutoAugment(AutoAugmentPolicy(policy)).policies
    chosen = torch.randint(len(policies), (len(x),), generator=generator).tolist()
    coins = torch.rand(len(x), 2, generator=generator).tolist()
    signs = torch.randint(2, (len(x), 2), generator=generator).tolist()
    x = x.clone()
    for place in range(2):
        groups: dict[tuple[str, float], list[int]] = defaultdict(list)
        for i, which in enumerate(chosen):
            name, probability, index = policies[which][place]
            if coins[i][place] <= probability:
                groups[name, magnitude(name, index, bool(signs[i][place]), x.shape[-1])].append(i)
        members = torch.tensor([i for group in groups.values() for i in group], dtype=torch.long).to(x.device)
        parts = members.split([len(group) for group in groups.values()])  # one copy to the device, not one a group
        for (name, size), part in zip(groups, parts, strict=True):
            x[part] = apply(x[part], name, size)
    return x


@functools.cache
def magnitude(name: str, index: int | None, positive: bool, side: int) -> float:
    """What an operation's bin stands for: degrees, pixels, a shear, a threshold, bits or 1 - factor; 0 without bins."""
    if index is None:
        return 0.0
    if name == "Posterize":
        return float(8 - round(4 * index / (BINS - 1)))
    if name == "Solarize":
        return 255.0 * float(torch.linspace(1.0, 0.0, BINS)[index])
    largest = {"Shear": 0.3, "Translate": 150 / 331 * side, "Rotate": 30.0}.get(name.rstrip("XY"), 0.9)
    return float(torch.linspace(0.0, largest, BINS)[index]) * (1 if positive else -1)  # float32, as torchvision rounds


def apply(x: Tensor, name: str, size: float) -> Tensor:
    """One operation on uint8 (b, C, H, W); ``size`` as :func:`magnitude` gives it."""
    from torchvision.transforms.v2 import functional as F

    def move(translate: tuple[float, float] = (0, 0), shear: tuple[float, float] = (0, 0)) -> Tensor:
        centre = [0.0, 0.0] if any(shear) else None  # sheared about the corner, as the policies were searched
        degrees = [math.degrees(math.atan(s)) for s in shear]
        return F.affine(x, angle=0.0, translate=[int(t) for t in translate], scale=1.0, shear=degrees, center=centre)

    operations = {
        "ShearX": lambda: move(shear=(size, 0)),
        "ShearY": lambda: move(shear=(0, size)),
        "TranslateX": lambda: move(translate=(size, 0)),
        "TranslateY": lambda: move(translate=(0, size)),
        "Rotate": lambda: F.rotate(x, size),
        "Brightness": lambda: F.adjust_brightness(x, 1 + size),
        "Color": lambda: F.adjust_saturation(x, 1 + size),
        "Contrast": lambda: F.adjust_contrast(x, 1 + size),
        "Sharpness": lambda: F.adjust_sharpness(x, 1 + size),
        "Posterize": lambda: F.posterize(x, int(size)),
        "Solarize": lambda: F.solarize(x, size),
        "AutoContrast": lambda: F.autocontrast(x),
        "Equalize": lambda: F.equalize(x),
        "Invert": lambda: F.invert(x),
    }
    return operations[name]()
