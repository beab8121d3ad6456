"""Datasets of a few empty files in their publishers' layouts, and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from bench.common.errors import UserError
from bench.common.paths import DATASETS
from bench.config.files import load_dataset_config
from bench.config.schema import DatasetConfig
from bench.data.readers import LAYOUTS

SHIPPED = [
    path.stem for path in sorted(DATASETS.glob("*.yaml")) if load_dataset_config(path.stem, []).layout in LAYOUTS
]
DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


def config(key: str, **changes: Any) -> DatasetConfig:
    """A shipped description with other counts and options, without checksums: the fixtures are not the originals."""
    shipped = load_dataset_config(key, [])
    changes["options"] = {**shipped.options, **changes.get("options", {})}
    files = [{**file.model_dump(), "md5": None} for file in shipped.files]
    return DatasetConfig.model_validate({**shipped.model_dump(), "files": files, **changes})


def own(layout: str, classes: int = 3, channels: int = 3, **options: Any) -> DatasetConfig:
    """A user's own dataset."""
    return DatasetConfig.model_validate(
        {
            "key": "mine", "title": "Mine", "layout": layout, "options": options, "classes": classes, "train": 1,
            "test": 1, "tasks": [1], "image": {"size": None, "channels": channels},
        }
    )  # fmt: skip


def read(configured: DatasetConfig, data: Path) -> Any:
    return LAYOUTS[configured.layout].read(configured, data)


def refused(configured: DatasetConfig, data: Path) -> str:
    """The one line that the reader stops with."""
    with pytest.raises(UserError) as caught:
        read(configured, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def tree(root: Path, **counts: int) -> None:
    for name, count in counts.items():
        touch(*(root / name / f"{i}.png" for i in range(count)))


def npz(path: Path, **arrays: np.ndarray) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


LABELS = {"y_train": np.array([0, 1, 2, 0]), "y_test": np.array([2, 1, 0])}


# ---- trees in their publishers' layouts ---------------------------------------------------------------------------
def tiny(data: Path) -> dict[str, Any]:
    """Four classes of 12 training and 2 validation images, wnids.txt not in alphabetical order."""
    root, wnids = data / "tiny-imagenet-200", ["n03", "n01", "n04", "n02"]
    write(root / "wnids.txt", *wnids)
    write(
        root / "words.txt", "n01\tgoldfish, Carassius auratus", "n02\tcrane", "n03\tEgyptian cat", "n04\tcrane", "n9\tx"
    )
    for wnid in wnids:
        touch(*(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG" for i in range(12)))
        write(root / "train" / wnid / f"{wnid}_boxes.txt", "x")
    touch(*(root / "val" / "images" / f"val_{i}.JPEG" for i in range(8)))
    write(root / "val" / "val_annotations.txt", *(f"val_{i}.JPEG\t{wnids[i % 4]}\t0\t0\t63\t63" for i in range(8)))
    return {"classes": 4, "train": 48, "test": 8}


def part(first: int, last: int, **options: int) -> Callable[[Path], dict[str, Any]]:
    def build(data: Path) -> dict[str, Any]:
        tiny(data)
        classes = last - first + 1
        each = options.get("train_per_class", 12)
        chosen = {"first": first, "last": last, **options}
        return {"classes": classes, "train": classes * each, "test": classes * 2, "options": chosen}

    return build


def cifar(classes: int, **options: int) -> Callable[[Path], dict[str, Any]]:
    """Ten records a file; record i of a file has fine label i, coarse label 7 and pixels that count up."""

    def build(data: Path) -> dict[str, Any]:
        folder = data / ("cifar-10-batches-bin" if classes == 10 else "cifar-100-binary")
        train = [f"data_batch_{i}.bin" for i in range(1, 6)] if classes == 10 else ["train.bin"]
        coarse = b"" if classes == 10 else b"\x07"
        folder.mkdir(parents=True)
        for name in [*train, "test_batch.bin" if classes == 10 else "test.bin"]:
            pixels = (np.arange(3072) % 251).astype(np.uint8).tobytes()
            (folder / name).write_bytes(b"".join(coarse + bytes([i]) + pixels for i in range(10)))
        write(
            folder / ("batches.meta.txt" if classes == 10 else "fine_label_names.txt"),
            *(f"c{i}" for i in range(10)),
            "",
        )
        each = options.get("train_per_class", len(train))
        chosen = {"options": {"archive": f"cifar{classes}", **options}} if options else {}
        return {"classes": 10, "train": 10 * each, "test": 10, **chosen}

    return build


def imagenet_r(data: Path) -> dict[str, Any]:
    """Two synsets whose labels are not in alphabetical order, lists as YAML."""
    write(data / "imagenet-r" / "README.txt", "ImageNet-R", "", "n01443537 goldfish", "n01484850 great_white_shark ")
    files = {"train": [("n01484850", "art_10.jpg", 0), ("n01443537", "toy_2.jpg", 1), ("n01484850", "art_2.jpg", 0)],
             "test": [("n01443537", "toy_1.jpg", 1), ("n01484850", "art_1.jpg", 0)]}  # fmt: skip
    for split, rows in files.items():
        touch(*(data / "imagenet-r" / folder / name for folder, name, _ in rows))
        listed = {"data": [f"data/imagenet-r/{f}/{n}" for f, n, _ in rows], "targets": [label for *_, label in rows]}
        write(data / "downloads" / f"imagenet-r_{split}.yaml", yaml.safe_dump(listed))
    return {"classes": 2, "train": 3, "test": 2}


def imagenet_a(data: Path) -> dict[str, Any]:
    """Three classes of 3, 20 and 27 images."""
    for folder, count in (("n1", 3), ("n2", 20), ("n10", 27)):
        touch(*(data / "imagenet-a" / folder / f"{i}.jpg" for i in range(count)))
    write(data / "imagenet-a" / "README.txt", "ImageNet-A", "n1 stingray", "n2 goldfinch", "n10 junco")
    return {"classes": 3, "train": 40, "test": 10}


def cub(data: Path) -> dict[str, Any]:
    root = data / "CUB_200_2011"
    rows = [("001.Black_footed_Albatross/a_1.jpg", 1, 0), ("001.Black_footed_Albatross/a_2.jpg", 1, 1),
            ("002.Laysan_Albatross/b_1.jpg", 2, 1), ("002.Laysan_Albatross/b_2.jpg", 2, 1),
            ("002.Laysan_Albatross/b_3.jpg", 2, 0)]  # fmt: skip
    touch(*(root / "images" / path for path, *_ in rows))
    write(root / "images.txt", *(f"{i} {path}" for i, (path, *_) in enumerate(rows, 1)))
    write(root / "image_class_labels.txt", *(f"{i} {label}" for i, (_, label, _) in enumerate(rows, 1)))
    write(root / "train_test_split.txt", *(f"{i} {train}" for i, (*_, train) in enumerate(rows, 1)))
    write(root / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    return {"classes": 2, "train": 3, "test": 2}


def domainnet200(data: Path) -> dict[str, Any]:
    rows = [("real/pickup_truck/real_221_000552.jpg", 0), ("infograph/parrot/infograph_213_000032.jpg", 1)]
    for split, name in (("train", "train"), ("val", "val")):
        listed = [(path.replace(".jpg", f"_{name}.jpg"), label) for path, label in rows]
        touch(*(data / "domainnet" / path for path, _ in listed))
        write(data / "downloads" / f"sdomain_{split}.txt", *(f"{path} {label}" for path, label in listed))
    return {"classes": 2, "train": 2, "test": 2}


def domainnet345(data: Path) -> dict[str, Any]:
    for domain in DOMAINS:
        for split, numbers in (("train", (1, 2)), ("test", (3,))):
            rows = [
                (f"{domain}/{name}/{domain}_{i}.jpg", c) for c, name in enumerate(("axe", "zebra")) for i in numbers
            ]
            touch(*(data / "domainnet" / path for path, _ in rows))
            write(data / "downloads" / f"{domain}_{split}.txt", *(f"{path} {label}" for path, label in rows))
    return {"classes": 2, "train": 24, "test": 12}


def cars(data: Path) -> dict[str, Any]:
    from scipy.io import savemat

    root = data / "stanford_cars"
    kinds = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]

    def notes(labels: list[int]) -> dict[str, np.ndarray]:
        rows = [(1, 1, 9, 9, np.uint8(label), f"{i:05d}.jpg") for i, label in enumerate(labels, 1)]
        return {"annotations": np.array([rows], dtype=kinds).reshape(1, -1)}

    (root / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo"], dtype=object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names.reshape(1, -1)})
    savemat(root / "devkit" / "cars_train_annos.mat", notes([3, 1, 2, 1]))
    savemat(root / "cars_test_annos_withlabels.mat", notes([1, 2, 3]))
    touch(*(root / "cars_train" / f"{i:05d}.jpg" for i in range(1, 5)))
    touch(*(root / "cars_test" / f"{i:05d}.jpg" for i in range(1, 4)))
    return {"classes": 3, "train": 4, "test": 3}


def omniglot(data: Path) -> dict[str, Any]:
    """As the archives are: two sets that share an alphabet, and what a Macintosh adds."""
    root = data / "omniglot-small"
    for folder, alphabet, count in (("1", "Latin", 2), ("1", "Greek", 1), ("2", "Latin", 2), ("2", "Tagalog", 1)):
        for c in range(1, count + 1):
            character = root / f"images_background_small{folder}" / alphabet / f"character{c:02d}"
            touch(*(character / f"{700 + c:04d}_{i:02d}.png" for i in range(1, 21)))
    touch(root / "__MACOSX" / "._x", root / "images_background_small1" / ".DS_Store")
    return {"classes": 4, "train": 60, "test": 20}


TREES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "cars": cars, "cifar10": cifar(10), "cifar10_small": cifar(10, train_per_class=4, test_per_class=1),
    "cifar100": cifar(100), "cub200": cub, "domainnet200": domainnet200,
    "domainnet345": domainnet345, "domainnet_domains": domainnet345, "imagenet_a_own": imagenet_a, "imagenet_r": imagenet_r, "omniglot": omniglot,
    "tiny_imagenet": tiny, "tiny_imagenet_base": part(0, 1), "tiny_imagenet_100": part(2, 3),
    "tiny_imagenet_100_small": part(2, 3, train_per_class=11),
}  # fmt: skip
