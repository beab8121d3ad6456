"""What a backbone is shown, against Pillow and torchvision on the same images."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from bench.common.errors import UserError
from bench.common.seeds import torch_rng
from bench.config.schema import AugmentConfig, ImageConfig
from bench.data.autoaugment import apply, auto_augment, magnitude
from bench.data.transforms import Transform, random_boxes, resizing

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}
NOTHING = AugmentConfig()


def picture(side: int, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 (2, C, side, side): one smooth, one noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    both = np.stack([np.array(small), rng.integers(0, 256, (side, side, 3), dtype=np.uint8)])
    return torch.from_numpy(both).permute(0, 3, 1, 2)[:, :channels].contiguous()


def pil(x: Tensor) -> Image.Image:
    return Image.fromarray(x.permute(1, 2, 0).numpy())


def levels(x: Tensor) -> Tensor:
    return (x * 255).round()


# ---- the test view -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("stored", "resize", "size"),
    [(32, 224, 224), (256, 256, 224), (64, 32, 32), (300, 256, 224), (37, 32, 29), (16, 24, 21), (32, 32, 31)],
)
def test_the_test_view_is_torchvisions_within_one_level(
    stored: int, resize: int, size: int, interpolation: str
) -> None:
    x = picture(stored)
    image = ImageConfig(size=size, resize=resize, interpolation=interpolation, **PLAIN)  # type: ignore[arg-type]
    mine = levels(Transform(image, NOTHING).shown(x))
    theirs = T.Compose([T.Resize(resize, T.InterpolationMode(interpolation)), T.CenterCrop(size), T.PILToTensor()])
    difference = (mine - torch.stack([theirs(pil(one)) for one in x]).float()).abs()
    assert mine.shape == (2, 3, size, size)
    assert difference.max() <= 1
    assert difference.mean() < 0.1  # enlarging by 3/2 makes many halves, which either way is right


@pytest.mark.parametrize("channels", [1, 3])
def test_without_anything_to_resize_it_is_plain_normalisation_bit_for_bit(channels: int) -> None:
    x = picture(32, channels)
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    transform = Transform(ImageConfig(size=32, channels=channels, mean=mean, std=std), NOTHING)  # type: ignore[arg-type]
    expected = (x.float() / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    assert torch.equal(transform.shown(x), expected)
    assert torch.equal(transform.augmented(x, 0), expected)
    assert not transform.augments


def test_a_larger_store_is_only_cut_from_its_centre() -> None:
    x = picture(256)
    transform = Transform(ImageConfig(size=224, resize=256, **PLAIN), NOTHING)
    assert torch.equal(levels(transform.shown(x)), x[..., 16:240, 16:240].float())


def test_grey_is_repeated_and_colour_for_a_grey_model_is_refused() -> None:
    x = picture(16, 1)
    image = ImageConfig(size=24, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0])
    shown = Transform(image, NOTHING).shown(x)
    assert shown.shape == (2, 3, 24, 24)
    torch.testing.assert_close(shown[:, 1] * 2 + 0.2, shown[:, 0] + 0.1)
    torch.testing.assert_close(shown[:, 2] * 4 + 0.3, shown[:, 0] + 0.1)
    with pytest.raises(UserError, match=r"image\.channels=1: the dataset's images have 3 channels"):
        Transform(ImageConfig(size=16, channels=1, mean=[0.0], std=[1.0]), NOTHING).shown(picture(16))


def test_half_precision_around_it_does_not_coarsen_the_pixels() -> None:
    transform = Transform(ImageConfig(size=48, **PLAIN), AugmentConfig(crop_scale=(0.5, 1.0)))
    x = picture(32)
    shown, augmented = transform.shown(x), transform.augmented(x, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform.shown(x), shown)
        assert torch.equal(transform.augmented(x, 1), augmented)


# ---- random crops and flips ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_crop_is_torchvisions_of_the_same_box_within_one_level(
    interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes = torch.tensor([[0.0, 0, 48, 48], [3, 7, 20, 31], [40, 12, 8, 36], [10, 44, 5, 4]])
    monkeypatch.setattr("bench.data.transforms.random_boxes", lambda *_: boxes)
    x = torch.cat([picture(48), picture(48, seed=1)])
    augment = AugmentConfig(crop_scale=(0.1, 1.0), interpolation=interpolation)  # type: ignore[arg-type]
    mine = levels(Transform(ImageConfig(size=32, **PLAIN), augment).augmented(x, 0))
    for one, box, got in zip(x, boxes.int().tolist(), mine, strict=True):
        theirs = T.functional.resized_crop(pil(one), *box, [32, 32], T.InterpolationMode(interpolation))
        assert (got - T.functional.pil_to_tensor(theirs)).abs().max() <= 1


def test_boxes_are_distributed_as_torchvisions() -> None:
    augment = AugmentConfig(crop_scale=(0.08, 1.0))
    mine = random_boxes(4000, 64, augment, torch_rng("boxes"))
    torch.manual_seed(0)
    image = torch.empty(3, 64, 64)
    theirs = torch.tensor(
        [T.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)]
    ).float()
    for statistic in (Tensor.mean, Tensor.std):
        torch.testing.assert_close(statistic(mine, 0), statistic(theirs, 0), rtol=0.05, atol=0.4)
    assert torch.equal(mine, mine.round())
    top, left, height, width = mine.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 64) & (left + width <= 64)).all())


@pytest.mark.parametrize("ratio", [(3.0, 4.0), (0.25, 0.3), (0.9, 1.1)])
def test_where_no_crop_fits_it_is_torchvisions_fallback(ratio: tuple[float, float]) -> None:
    augment = AugmentConfig(crop_scale=(3.0, 3.0), crop_ratio=ratio)
    [box] = random_boxes(1, 64, augment, torch_rng("boxes"))
    expected = T.RandomResizedCrop.get_params(torch.empty(3, 64, 64), [3.0, 3.0], list(ratio))
    assert box.tolist() == list(expected)


def test_every_second_image_is_turned() -> None:
    x = picture(16)[:1].expand(200, -1, -1, -1)
    transform = Transform(ImageConfig(size=16, **PLAIN), AugmentConfig(flip=True))
    shown, augmented = transform.shown(x), transform.augmented(x, 0)
    same, turned = [(augmented == view).flatten(1).all(1) for view in (shown, shown.flip(-1))]
    assert bool((same ^ turned).all())
    assert 70 < int(turned.sum()) < 130


def test_resampling_weights_sum_to_one_and_see_the_crop_only() -> None:
    weights = resizing(torch.tensor([5.0]), torch.tensor([10.0]), 32, 24, cubic=True)[0]
    torch.testing.assert_close(weights.sum(1), torch.ones(24))
    assert not bool(weights[:, :5].any())
    assert not bool(weights[:, 15:].any())


# ---- AutoAugment ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
@pytest.mark.parametrize("sign", [0, 1])
def test_every_sub_policy_is_torchvisions_bit_for_bit(policy: str, sign: int) -> None:
    theirs, x = v2.AutoAugment(v2.AutoAugmentPolicy(policy)), picture(40)
    for operations in theirs._policies:
        mine = x
        for name, _, index in operations:
            mine = apply(mine, name, magnitude(name, index, bool(sign), 40))
        assert torch.equal(mine, forced(theirs, operations, sign, x)), operations


def forced(auto: v2.AutoAugment, operations: tuple[tuple[str, float, int | None], ...], sign: int, x: Tensor) -> Tensor:
    """Both operations by torchvision's own table and kernels."""
    for name, _, index in operations:
        bins, signed = auto._AUGMENTATION_SPACE[name]
        table = bins(10, *x.shape[-2:])
        size = 0.0 if table is None else float(table[index])
        x = auto._apply_image_or_video_transform(
            x, name, -size if signed and not sign else size, auto.interpolation, {}
        )
    return x


def test_operations_are_drawn_for_every_image_with_the_policys_probabilities() -> None:
    """On a grey image without contrast, what comes out of a sub-policy is one level, which tells draws apart."""
    x = torch.full((4000, 1, 8, 8), 100, dtype=torch.uint8)
    out = auto_augment(x, "svhn", torch_rng("draws"))[:, 0, 4, 4]
    assert int(x.max()) == 100  # the batch itself is not changed
    policies, expected = T.AutoAugment(T.AutoAugmentPolicy.SVHN).policies, torch.zeros(256)
    for both in policies:
        for coins, signs in product(product((0, 1), repeat=2), repeat=2):
            level, share = x[:1], 1 / (4 * len(policies))
            for (name, probability, index), coin, sign in zip(both, coins, signs, strict=True):
                share *= probability if coin else 1 - probability
                level = apply(level, name, magnitude(name, index, bool(sign), 8)) if coin else level
            expected[int(level[0, 0, 4, 4])] += share
    found = torch.bincount(out.long(), minlength=256) / len(x)
    assert (found - expected).abs().sum() < 0.06


def test_a_batch_is_what_its_images_are_alone() -> None:
    """Grouping by operation changes no image."""
    x = picture(32, seed=2)[1:].expand(64, -1, -1, -1)
    out = auto_augment(x, "imagenet", torch_rng("draws", 1))
    policies = T.AutoAugment(T.AutoAugmentPolicy.IMAGENET).policies
    generator = torch_rng("draws", 1)
    chosen = torch.randint(len(policies), (64,), generator=generator).tolist()
    coins, signs = torch.rand(64, 2, generator=generator), torch.randint(2, (64, 2), generator=generator)
    for i, which in enumerate(chosen):
        alone = x[i : i + 1]
        for place, (name, probability, index) in enumerate(policies[which]):
            if coins[i, place] <= probability:
                alone = apply(alone, name, magnitude(name, index, bool(signs[i, place]), 32))
        assert torch.equal(out[i : i + 1], alone)


# ---- together ------------------------------------------------------------------------------------------------------
def full() -> Transform:
    augment = AugmentConfig(auto="imagenet", crop_scale=(0.3, 1.0), flip=True)
    return Transform(ImageConfig(size=32, resize=48, mean=[0.5] * 3, std=[0.5] * 3), augment)


def test_equal_images_in_a_batch_come_out_different() -> None:
    out = full().augmented(picture(48)[1:].expand(32, -1, -1, -1), 0)
    assert out.shape == (32, 3, 32, 32)
    assert out.dtype == torch.float32
    assert len(torch.unique(out.flatten(1), dim=0)) == 32


def test_a_training_view_is_a_function_of_the_seed_alone() -> None:
    x = picture(48)
    torch.manual_seed(1)
    first, state = full().augmented(x, 0, "task", 3), torch.get_rng_state()
    torch.rand(7)
    assert torch.equal(full().augmented(x, 0, "task", 3), first)
    for seed in ((1, "task", 3), (0, "other", 3), (0, "task", 4)):
        assert not torch.equal(full().augmented(x, *seed), first)
    torch.manual_seed(1)
    full().augmented(x, 5)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws are touched


def test_auto_augment_without_crops_ends_in_the_test_views_size() -> None:
    transform = Transform(ImageConfig(size=32, resize=40, **PLAIN), AugmentConfig(auto="svhn"))
    assert transform.augmented(picture(48), 0).shape == (2, 3, 32, 32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_shows_the_same_within_one_level() -> None:
    x, image = picture(300), ImageConfig(size=224, resize=256, **PLAIN)
    augment = AugmentConfig(auto="imagenet", crop_scale=(0.3, 1.0), flip=True)
    here, there = Transform(image, augment), Transform(image, augment, "cuda")
    assert (levels(here.shown(x)) - levels(there.shown(x.cuda())).cpu()).abs().max() <= 1
    difference = (levels(here.augmented(x, 0)) - levels(there.augmented(x.cuda(), 0)).cpu()).abs()
    assert difference.mean() < 0.5  # a level more or less before Equalize or Solarize may end up far apart


def test_importing_them_loads_no_library_of_images() -> None:
    code = "import sys, bench.data.transforms; sys.exit('torchvision' in sys.modules or 'kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
