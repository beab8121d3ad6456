"""Images as a backbone is shown them: the same view at every test, and views drawn anew for every image in training.

Resizing is Pillow's: antialiased, columns before rows, rounded to whole levels after each (measured against Pillow and
torchvision: no pixel off by more than one level, see the tests). It is done as two matrix products, which is as fast on
a GPU as it is short, and lets every image of a batch have a crop of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.common.errors import UserError
from bench.common.seeds import torch_rng
from bench.config.schema import AugmentConfig, ImageConfig
from bench.data.autoaugment import auto_augment

TRIES = 10  #: of a random crop to fit into the image, after which all of it is taken (as torchvision does)


class Transform:
    """uint8 images of a dataset to float32 input of a model.

    Attributes:
        augments: whether training shows anything but the test view.
    """

    def __init__(self, image: ImageConfig, augment: AugmentConfig, device: str | torch.device = "cpu") -> None:
        self.image, self.augment = image, augment
        self.augments = augment.auto is not None or augment.crop_scale is not None or augment.flip
        self.mean = torch.tensor(image.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(image.std, device=device).view(-1, 1, 1)
        self._resizing: dict[int, Tensor] = {}

    def shown(self, x: Tensor) -> Tensor:
        """The test view: resized where the stored side is not the wanted one, cut from the centre, normalised.

        Args:
            x: uint8 (b, C, H, H).

        Returns:
            float32 (b, channels, size, size). Grey images are repeated where the model wants three channels.

        Raises:
            UserError: colour images for a model of one channel.
        """
        return self._normalised(self._centre(x))

    def augmented(self, x: Tensor, *seed: int | str) -> Tensor:
        """A training view: AutoAugment of the stored image, a random crop resized, a flip; else the test view.

        Args:
            x: uint8 (b, C, H, H).
            seed: what the draws are a function of, together with the place in the batch.

        Returns:
            float32 (b, channels, size, size).
        """
        if not self.augments:
            return self.shown(x)
        generator = torch_rng("augment", *seed)
        if self.augment.auto is not None:
            x = auto_augment(x, self.augment.auto, generator)
        if self.augment.crop_scale is None:
            x = self._centre(x)
        else:
            boxes = random_boxes(len(x), x.shape[-1], self.augment, generator).to(x.device)
            cubic = self.augment.interpolation == "bicubic"
            rows = resizing(boxes[:, 0], boxes[:, 2], x.shape[-2], self.image.size, cubic)
            columns = resizing(boxes[:, 1], boxes[:, 3], x.shape[-1], self.image.size, cubic)
            x = _resized(x, rows.unsqueeze(1), columns.unsqueeze(1))
        if self.augment.flip:
            turned = torch.rand(len(x), generator=generator).lt(0.5).to(x.device)
            x = torch.where(turned.view(-1, 1, 1, 1), x.flip(-1), x)
        return self._normalised(x)

    def _centre(self, x: Tensor) -> Tensor:
        stored, wanted, size = x.shape[-1], self.image.resized, self.image.size
        top = round((wanted - size) / 2)
        if stored == wanted:
            return x if size == stored else x[..., top : top + size, top : top + size]
        if stored not in self._resizing:
            start, length = torch.tensor([[0.0], [stored]], device=x.device)
            matrix = resizing(start, length, stored, wanted, self.image.interpolation == "bicubic")
            self._resizing[stored] = matrix[:, top : top + size]
        return _resized(x, self._resizing[stored], self._resizing[stored])

    def _normalised(self, x: Tensor) -> Tensor:
        if x.shape[1] not in (1, self.image.channels):
            raise UserError(
                f"image.channels={self.image.channels}: the dataset's images have {x.shape[1]} channels; "
                "use a protocol whose backbone takes colour"
            )
        return (x.expand(-1, self.image.channels, -1, -1).float() / 255 - self.mean) / self.std


def random_boxes(count: int, side: int, augment: AugmentConfig, generator: torch.Generator) -> Tensor:
    """Random crops as torchvision's ``RandomResizedCrop`` draws them.

    Returns:
        float32 (count, 4): top, left, height and width in whole pixels of an image of ``side`` x ``side``.
    """
    assert augment.crop_scale is not None
    (smallest, largest), ratio = augment.crop_scale, torch.tensor(augment.crop_ratio)
    area = side**2 * torch.empty(count, TRIES).uniform_(smallest, largest, generator=generator)
    log_ratio = torch.empty(count, TRIES).uniform_(*ratio.log().tolist(), generator=generator)
    width = (area * log_ratio.exp()).sqrt().round()
    height = (area / log_ratio.exp()).sqrt().round()
    fits = (width > 0) & (width <= side) & (height > 0) & (height <= side)
    first = fits.int().argmax(1, keepdim=True)
    none = ~fits.any(1)
    height, width = height.gather(1, first).squeeze(1), width.gather(1, first).squeeze(1)
    height[none], width[none] = round(side / max(1.0, float(ratio[0]))), round(side * min(1.0, float(ratio[1])))
    corner = torch.rand(2, count, generator=generator)
    top, left = (corner[0] * (side - height + 1)).floor(), (corner[1] * (side - width + 1)).floor()
    top[none], left[none] = ((side - height[none]) / 2).floor(), ((side - width[none]) / 2).floor()
    return torch.stack([top, left, height, width], dim=1)


def resizing(start: Tensor, length: Tensor, stored: int, size: int, cubic: bool) -> Tensor:
    """Pillow's resampling weights: what each of ``size`` outputs takes of the ``stored`` pixels.

    Args:
        start, length: float32 (b,), in pixels: the part ``start`` to ``start + length`` is resized, the rest unseen.
        stored: pixels along the axis.
        size: outputs along the axis.
        cubic: Keys' cubic kernel with a = -0.5, else the triangle.

    Returns:
        float32 (b, size, stored); rows sum to 1.
    """
    step = (length / size)[:, None, None]
    at = torch.arange(size, device=start.device)[:, None] + 0.5
    pixel = torch.arange(stored, device=start.device) + 0.5
    start = start[:, None, None]
    distance = ((pixel - start - at * step) / step.clamp(min=1)).abs()
    if cubic:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    else:
        weight = (1 - distance).clamp(min=0)
    weight = weight * ((pixel > start) & (pixel < start + length[:, None, None]))
    return weight / weight.sum(-1, keepdim=True)


def _resized(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(b, C, H, W) by (.., size, H) and (.., size, W) to whole levels, float32 (b, C, size, size)."""
    with torch.autocast(x.device.type, enabled=False):  # half precision cannot tell 255 levels apart
        x = (x.float() @ columns.mT).add_(0.5).floor_().clamp_(0, 255)
        return (rows @ x).add_(0.5).floor_().clamp_(0, 255)
