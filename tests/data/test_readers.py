"""Every shipped dataset from a tree in its publisher's layout, a user's own, and real ones where they are at hand.

CLMERGE_TEST_DATA: a data folder with real datasets; CLMERGE_TEST_SPLITS: a folder with the public split lists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.common.paths import ROOT
from bench.config.files import load_dataset_config
from bench.config.schema import Section
from bench.data.readers import LAYOUTS, image_folder
from bench.data.readers.folders import natural
from bench.data.readers.reader import Arrays, Listing
from tests.helpers.trees import (
    DOMAINS,
    LABELS,
    SHIPPED,
    TREES,
    cars,
    cifar,
    config,
    cub,
    domainnet345,
    imagenet_r,
    images,
    npz,
    omniglot,
    own,
    read,
    refused,
    tiny,
    touch,
    tree,
    write,
)


@pytest.mark.parametrize("key", SHIPPED)
def test_a_shipped_dataset_is_read_to_exact_counts(key: str, tmp_path: Path) -> None:
    described = config(key, **TREES[key](tmp_path))
    assert LAYOUTS[described.layout].why_not(described, tmp_path) is None
    found = read(described, tmp_path)
    assert len(found.class_names) == len(set(found.class_names)) == described.classes
    for items, labels, count in ((found[0], found[1], described.train), (found[2], found[3], described.test)):
        assert len(items) == len(labels) == count
        assert labels.dtype == np.int64
        assert set(labels.tolist()) == set(range(described.classes))
    if isinstance(found, Listing):
        assert all(file.is_file() for file in [*found.train_files, *found.test_files])
        assert len({*found.train_files, *found.test_files}) == described.train + described.test


@pytest.mark.parametrize("key", SHIPPED)
def test_without_its_files_a_dataset_says_how_to_get_them(key: str, tmp_path: Path) -> None:
    described = load_dataset_config(key, [])
    line = LAYOUTS[described.layout].why_not(described, tmp_path)
    assert line is not None
    assert "\n" not in line
    assert f"clmerge data get {key}" in line
    assert line in refused(described, tmp_path)


@pytest.mark.parametrize("key", SHIPPED)
def test_files_of_a_dataset_can_be_fetched_or_come_with_instructions(key: str) -> None:
    described = load_dataset_config(key, [])
    assert described.files
    for file in described.files:
        assert (file.url is not None) != bool(described.get), file.name
        assert file.url is None or file.url.endswith("/" + file.name)
        assert file.md5 is None or len(file.md5) == 32
    assert described.image.size is None or len(described.image.mean) == described.image.channels


def test_readers_are_light() -> None:
    """``list`` and ``plan`` ask them."""
    heavy = "import bench.data.readers, sys; print(*{'torch', 'ray', 'scipy', 'PIL'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == ""
    )


def test_every_layout_and_option_is_in_the_docs() -> None:
    told = set(re.findall(r"`([\w.]+)`", (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")))
    assert set(LAYOUTS) | set(SHIPPED) <= told
    for model in Section.__subclasses__():
        if model.__module__.startswith("bench.data.readers."):
            assert set(model.model_fields) <= told, model.__name__


# ---- labels, names, order -----------------------------------------------------------------------------------------
def test_natural_order() -> None:
    assert sorted(["10", "2", "1", "a10", "a9", "01"], key=natural) == ["01", "1", "2", "10", "a9", "a10"]


def test_tiny_imagenet_follows_wnids_and_natural_order(tmp_path: Path) -> None:
    tiny(tmp_path)
    whole = read(config("tiny_imagenet", classes=4), tmp_path)
    assert whole.class_names == ("Egyptian cat", "goldfish", "crane (n04)", "crane (n02)")
    assert [file.name for file in whole.train_files[:12]] == [f"n03_{i}.JPEG" for i in range(12)]
    assert [file.name for file in whole.test_files] == [f"val_{i}.JPEG" for i in (0, 4, 1, 5, 2, 6, 3, 7)]
    options = {"first": 1, "last": 2, "train_per_class": 3}
    middle = read(config("tiny_imagenet", options=options), tmp_path)
    assert {file.parent.parent.name for file in middle.train_files} == {"n01", "n04"}
    assert middle.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert [file.name for file in middle.train_files[:3]] == ["n01_0.JPEG", "n01_1.JPEG", "n01_2.JPEG"]
    assert [file.name for file in middle.test_files] == ["val_1.JPEG", "val_5.JPEG", "val_2.JPEG", "val_6.JPEG"]


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_takes_planes_and_the_fine_label(classes: int, tmp_path: Path) -> None:
    changes = cifar(classes)(tmp_path)
    found = read(config(f"cifar{classes}", **changes), tmp_path)
    assert isinstance(found, Arrays)
    assert found.train_images.shape == (changes["train"], 3, 32, 32)
    assert found.train_images.dtype == np.uint8
    assert found.test_labels.tolist() == list(range(10))
    assert found.test_images[4, 1, 2, 3] == (1024 + 2 * 32 + 3) % 251


def test_cifar_takes_the_first_images_of_each_class(tmp_path: Path) -> None:
    cifar(10)(tmp_path)
    last = tmp_path / "cifar-10-batches-bin" / "data_batch_5.bin"
    last.write_bytes(b"".join(bytes([label]) + bytes(3072) for label in range(10)))
    options = {"archive": "cifar10", "train_per_class": 2, "test_per_class": 1}
    part = read(config("cifar10", options=options), tmp_path)
    assert isinstance(part, Arrays)
    assert part.train_labels.tolist() == [*range(10), *range(10)]
    assert part.train_images.any(axis=(1, 2, 3)).all()
    assert part.test_labels.tolist() == list(range(10))


def test_imagenet_r_keeps_the_lists_labels_and_order(tmp_path: Path) -> None:
    found = read(config("imagenet_r", **imagenet_r(tmp_path)), tmp_path)
    assert found.class_names == ("great_white_shark", "goldfish")
    assert [file.name for file in found.train_files] == ["art_10.jpg", "toy_2.jpg", "art_2.jpg"]
    assert found.train_labels.tolist() == [0, 1, 0]


def test_cub_names_and_split(tmp_path: Path) -> None:
    found = read(config("cub200", **cub(tmp_path)), tmp_path)
    assert found.class_names == ("Black_footed_Albatross", "Laysan_Albatross")
    assert [file.name for file in found.test_files] == ["a_1.jpg", "b_3.jpg"]


def test_cars_labels_start_at_zero_and_the_test_notes_may_lie_in_downloads(tmp_path: Path) -> None:
    described = config("cars", **cars(tmp_path))
    found = read(described, tmp_path)
    assert found.train_labels.tolist() == [2, 0, 1, 0]
    assert found.class_names[2] == "smart fortwo"
    (tmp_path / "downloads").mkdir()
    notes = tmp_path / "stanford_cars" / "cars_test_annos_withlabels.mat"
    notes.rename(tmp_path / "downloads" / notes.name)
    assert read(described, tmp_path)[2:4][0] == found.test_files


def test_domainnet_joins_the_domains(tmp_path: Path) -> None:
    found = read(config("domainnet345", **domainnet345(tmp_path)), tmp_path)
    assert found.class_names == ("axe", "zebra")
    assert [file.parts[-3] for file in found.train_files[::4]] == list(DOMAINS)


def test_omniglot_splits_by_drawing_and_merges_sets(tmp_path: Path) -> None:
    found = read(config("omniglot", **omniglot(tmp_path)), tmp_path)
    assert found.class_names == (
        "Greek/character01", "Latin/character01", "Latin/character02", "Tagalog/character01"
    )  # fmt: skip
    assert {file.stem[-2:] for file in found.test_files} == {"16", "17", "18", "19", "20"}
    assert "images_background_small1" in found.train_files[15].parts  # the first set's Latin


# ---- a user's own data --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("test", ["test", "val"])
def test_an_image_folder_that_is_split(test: str, tmp_path: Path) -> None:
    tree(tmp_path / "mine" / "train", c1=2, c2=1, c10=3)
    tree(tmp_path / "mine" / test, c1=1, c2=2, c10=1)
    found = read(own("image_folder", path="mine"), tmp_path)
    assert found.class_names == ("c1", "c2", "c10")
    assert found.train_labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert found.test_labels.tolist() == [0, 1, 1, 2]


def test_the_rule_that_splits_a_tree_is_fixed(tmp_path: Path) -> None:
    tree(tmp_path / "a", x=12, y=9, z=2)
    first = read(own("image_folder", path="a"), tmp_path)
    assert Counter(first.test_labels.tolist()) == {0: 2, 1: 2, 2: 1}  # 2.4, 1.8 and 0.4 of 4.6, rounded to 5
    # Names alone decide: the same tree elsewhere, and as committed here once and for all.
    tree(tmp_path / "b", x=12, y=9, z=2)
    second = read(own("image_folder", path=str(tmp_path / "b")), tmp_path / "elsewhere")
    assert [f.relative_to(tmp_path / "b") for f in second.test_files] == [
        f.relative_to(tmp_path / "a") for f in first.test_files
    ]
    assert [f"{f.parent.name}/{f.stem}" for f in first.test_files] == FIXED
    # One file more changes little.
    touch(tmp_path / "a" / "x" / "12.png")
    third = read(own("image_folder", path="a"), tmp_path)
    assert len(set(first.test_files) - set(third.test_files)) <= 1


FIXED = ["x/0", "x/7", "y/2", "y/4", "z/0"]


def test_the_rule_gives_exact_totals() -> None:
    rng = np.random.default_rng(0)
    for percent in (1, 20, 33, 50, 99):
        classes = [[Path(f"c{c}/{i}.png") for i in range(n)] for c, n in enumerate(rng.integers(100, 300, 20))]
        train, test = image_folder.split(classes, percent)
        total = sum(map(len, classes))
        assert sum(map(len, test)) == (total * percent + 50) // 100
        for files, mine, others in zip(classes, train, test, strict=True):
            assert abs(len(others) - len(files) * percent / 100) < 1
            assert sorted([*mine, *others]) == sorted(files)


@pytest.mark.parametrize(("tail", "channels"), [((6, 5, 3), 3), ((3, 6, 5), 3), ((6, 5), 1), ((6, 5, 1), 1)])
def test_arrays_of_any_order(tail: tuple[int, ...], channels: int, tmp_path: Path) -> None:
    train, test = images(4, *tail), images(3, *tail)
    npz(tmp_path / "a.npz", x_train=train, x_test=test, **LABELS)
    found = read(own("arrays", channels=channels, path="a.npz"), tmp_path)
    assert found.train_images.shape == (4, channels, 6, 5)
    assert found.class_names == ("0", "1", "2")
    np.testing.assert_array_equal(found.test_labels, LABELS["y_test"])
    expected = np.moveaxis(train, -1, 1) if tail == (6, 5, 3) else train.reshape(4, channels, 6, 5)
    np.testing.assert_array_equal(found.train_images, expected)


def test_arrays_in_several_files_under_other_names(tmp_path: Path) -> None:
    x = images(5, 4, 4, 3)
    npz(tmp_path / "1.npz", data=x[:2], label=np.array([[0], [1]], dtype=np.uint8))
    npz(tmp_path / "2.npz", data=x[2:3], label=np.array([[1]], dtype=np.uint8))
    npz(tmp_path / "test.npz", test=x[3:], test_label=np.array([1, 0]), class_names=np.array(["cat", "dog"]))
    names: dict[str, Any] = {"x_train": "data", "y_train": "label", "x_test": "test", "y_test": "test_label"}
    found = read(own("arrays", classes=2, path=["1.npz", "2.npz", "test.npz"], **names), tmp_path)
    assert found.train_labels.tolist() == [0, 1, 1]
    assert found.class_names == ("cat", "dog")
    np.testing.assert_array_equal(found.test_images, x[3:].transpose(0, 3, 1, 2))


# ---- the real ones -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", [key for key in SHIPPED if "tiny" in key or key in ("cifar10", "omniglot")])
def test_a_real_dataset_is_read_to_exact_counts(key: str) -> None:
    data = os.environ.get("CLMERGE_TEST_DATA")
    if not data:
        pytest.skip("CLMERGE_TEST_DATA names no folder of real datasets")
    described = load_dataset_config(key, [])
    line = LAYOUTS[described.layout].why_not(described, Path(data))
    if line is not None:
        pytest.skip(line)
    start = time.perf_counter()
    found = read(described, Path(data))
    assert time.perf_counter() - start < 20
    assert (len(found[0]), len(found[2]), len(found.class_names)) == (
        described.train,
        described.test,
        described.classes,
    )
    assert len(set(found.class_names)) == described.classes
    for labels, count in ((found[1], described.train), (found[3], described.test)):
        assert set(np.bincount(labels, minlength=described.classes)) == {count // described.classes}


@pytest.mark.parametrize(
    ("key", "folder", "range_train", "range_test"),
    [("imagenet_r", "imagenet-r", (38, 354), (5, 81)), ("domainnet200", "domainnet", (9, 586), (5, 252))],
)
def test_the_public_lists_give_the_shipped_counts(
    key: str, folder: str, range_train: tuple[int, int], range_test: tuple[int, int], tmp_path: Path
) -> None:
    """The lists as they are, with their checksums, over a tree of empty files."""
    splits = os.environ.get("CLMERGE_TEST_SPLITS")
    if not splits:
        pytest.skip("CLMERGE_TEST_SPLITS names no folder of public split lists")
    described = load_dataset_config(key, [])
    (tmp_path / "downloads").mkdir()
    write(tmp_path / "imagenet-r" / "README.txt", "none")
    lists = [file.name for file in described.files if not file.extract]
    assert len(lists) == 2
    for name in lists:
        shutil.copyfile(Path(splits) / name, tmp_path / "downloads" / name)
        text = (Path(splits) / name).read_text(encoding="utf-8")
        words = (word.removeprefix(described.options.get("strip", "")) for word in text.split())
        paths = [tmp_path / folder / word for word in words if word.endswith((".jpg", ".png"))]
        for parent in {path.parent for path in paths}:
            parent.mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.touch()
    found = read(described, tmp_path)
    assert (len(found.train_files), len(found.test_files)) == (described.train, described.test)
    assert len(set(found.class_names)) == described.classes == 200
    for labels, (least, most) in ((found.train_labels, range_train), (found.test_labels, range_test)):
        each = np.bincount(labels, minlength=200)
        assert (each.min(), each.max()) == (least, most)
