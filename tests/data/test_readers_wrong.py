"""What is wrong with a dataset's files is said in one line that names the file, or the option, and how to mend it."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.config.files import load_dataset_config
from bench.config.schema import DatasetConfig
from tests.helpers.trees import (
    LABELS,
    TREES,
    cars,
    cifar,
    config,
    cub,
    domainnet200,
    imagenet_r,
    images,
    npz,
    own,
    refused,
    tiny,
    touch,
    tree,
    write,
)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"x_train": images(4, 6, 5, 3).astype(float)}, "x_train: needs whole numbers 0 to 255 (uint8), found float64"),
        ({"x_test": images(3, 6, 5, 2)}, "is neither, with 3 channels"),
        ({"x_test": images(3, 3, 5, 3)}, "could be either"),
        ({"y_train": np.array([0.0, 1, 2, 0])}, "needs one whole number an image"),
        ({"y_test": np.array([2, 1])}, "test: 3 images, but 2 labels"),
        ({"x_train": np.array([{}], dtype=object)}, "not an npz file of plain arrays"),
    ],
)  # fmt: skip
def test_wrong_arrays(change: dict[str, np.ndarray], said: str, tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", **{"x_train": images(4, 6, 5, 3), "x_test": images(3, 6, 5, 3), **LABELS, **change})
    assert said in refused(own("arrays", path="a.npz"), tmp_path)


def test_a_wrong_npz_and_a_missing_array(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", x_tran=images(1, 2, 2, 3))
    assert "unknown array 'x_train'; did you mean 'x_tran'?" in refused(own("arrays", path="a.npz"), tmp_path)
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-40])
    assert "not an npz file" in refused(own("arrays", path="a.npz"), tmp_path)
    np.save(tmp_path / "a.npy", images(2))
    assert "not an npz file" in refused(own("arrays", path="a.npy"), tmp_path)
    assert "b.npz: not found; put it there" in refused(own("arrays", path="b.npz"), tmp_path)
    assert "did you mean 'path'" in refused(own("arrays", pth="a.npz"), tmp_path)


@pytest.mark.parametrize(
    ("key", "deep", "to"),
    [("cub200", "CUB_200_2011", "images.txt"), ("cifar10", "cifar-10-batches-bin", "test_batch.bin"),
     ("tiny_imagenet", "tiny-imagenet-200", "wnids.txt")],
)  # fmt: skip
def test_one_level_too_deep(key: str, deep: str, to: str, tmp_path: Path) -> None:
    described = config(key, **TREES[key](tmp_path / deep))
    assert (tmp_path / deep / deep / to).exists()
    said = refused(described, tmp_path)
    assert f"move what is in {tmp_path / deep / deep} to {tmp_path / deep}" in said


def test_cifar_pickles_are_refused_and_wrong_records_named(tmp_path: Path) -> None:
    touch(tmp_path / "cifar-10-batches-py" / "data_batch_1")
    said = refused(load_dataset_config("cifar10", []), tmp_path)
    assert "Python pickles, which are never opened" in said
    assert "clmerge data get cifar10" in said
    described = config("cifar10", **cifar(10)(tmp_path))
    file = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    assert "data_batch_3.bin: 30729 bytes are not whole records of 3073" in refused(described, tmp_path)
    file.write_bytes(good[: 2 * 3073] + b"\x0a" + good[2 * 3073 + 1 :])
    assert "data_batch_3.bin: record 2: label 10 is out of range (0 to 9)" in refused(described, tmp_path)


def test_cifar_with_fewer_images_than_are_asked_for(tmp_path: Path) -> None:
    cifar(10)(tmp_path)
    too_many = config("cifar10", options={"archive": "cifar10", "test_per_class": 1001})
    assert "options.test_per_class: says 1001, but class " in refused(too_many, tmp_path)


def test_wrong_tiny_imagenet_trees(tmp_path: Path) -> None:
    described, root = config("tiny_imagenet", **tiny(tmp_path)), tmp_path / "tiny-imagenet-200"
    assert "options.first, options.last: 2 to 4 are no classes" in refused(
        config("tiny_imagenet", options={"first": 2, "last": 4}), tmp_path
    )
    too_many = config("tiny_imagenet", options={"train_per_class": 13})
    assert "options.train_per_class: says 13, but class n03 has 12 images" in refused(too_many, tmp_path)
    (root / "val" / "images" / "val_3.JPEG").unlink()
    (root / "val" / "images" / "val_5.JPEG").unlink()
    said = refused(described, tmp_path)
    assert "2 of the files it lists are not there, the first:" in said
    assert "val_5.JPEG" in said
    (root / "train" / "n04" / "images").rename(root / "train" / "n04" / "image")
    assert f"{root / 'train' / 'n04' / 'images'}: No such file" in refused(described, tmp_path)


def test_wrong_lists(tmp_path: Path) -> None:
    described = config("domainnet200", **domainnet200(tmp_path))
    train, val = (tmp_path / "downloads" / f"sdomain_{split}.txt" for split in ("train", "val"))
    good, other = train.read_text(), val.read_text().splitlines()

    def with_line(line: str) -> str:
        train.write_text(good + line + "\n")
        return refused(described, tmp_path)

    assert "real/x/y.jpg: label 2 is out of range (0 to 1)" in with_line("real/x/y.jpg 2")
    assert "entry 3: 'real/x/y.jpg -1' is no path and label" in with_line("real/x/y.jpg -1")
    assert "1 of the files it lists are not there, the first:" in with_line("real/x/y.jpg 1")
    said = with_line(other[0])
    assert "is listed twice" in said
    assert str(train) in said
    assert str(val) in said
    assert "leads out of" in with_line("../../etc/passwd 1")
    assert "leads out of" in with_line("/etc/passwd 1")
    train.write_text(good)
    pinned = {**described.model_dump(), "files": [{"name": train.name, "md5": "0" * 32, "extract": False}]}
    found = hashlib.md5(train.read_bytes()).hexdigest()
    assert f"its MD5 is {found}, but {'0' * 32} is the list that is meant" in refused(
        DatasetConfig.model_validate(pinned), tmp_path
    )


def test_wrong_yaml_lists(tmp_path: Path) -> None:
    described = config("imagenet_r", **imagenet_r(tmp_path))
    file = tmp_path / "downloads" / "imagenet-r_train.yaml"
    for content, said in (
        ("data: [a, b", "not valid YAML"),
        ("files: [a]", "no keys 'data' and 'targets'"),
        ("data: [a]\ntargets: [0, 1]", "are not a path and a whole number each"),
        ("data: [a]\ntargets: [x]", "are not a path and a whole number each"),
        ("data: [imagenet-r/n0/a.jpg]\ntargets: [0]", "does not start with options.strip"),
        ("!!python/object/apply:os.system [exit]", "not valid YAML"),
    ):
        file.write_text(content + "\n")
        assert said in refused(described, tmp_path)


def test_wrong_cub_and_cars(tmp_path: Path) -> None:
    birds, root = config("cub200", **cub(tmp_path)), tmp_path / "CUB_200_2011"
    for name, line, said in (
        ("image_class_labels.txt", "5 3", "image 5: no class 3"),
        ("image_class_labels.txt", "6 2", "image 5 is not both there and in images.txt"),
        ("train_test_split.txt", "5 2", "image 5: '2' is not 0 or 1"),
        ("classes.txt", "2", "line 2: not a number and a value"),
    ):
        good = (root / name).read_text()
        write(root / name, *good.splitlines()[:-1], line)
        assert said in refused(birds, tmp_path)
        (root / name).write_text(good)
    (root / "images" / "002.Laysan_Albatross" / "b_2.jpg").unlink()
    assert "1 of the files it lists are not there, the first:" in refused(birds, tmp_path)
    machines, folder = config("cars", **cars(tmp_path)), tmp_path / "stanford_cars"
    (folder / "cars_test" / "00002.jpg").unlink()
    assert "00002.jpg" in refused(machines, tmp_path)
    meta = folder / "devkit" / "cars_meta.mat"
    good_bytes = meta.read_bytes()
    meta.write_bytes(b"no MATLAB")
    assert "cars_meta.mat: not a MATLAB file that can be read" in refused(machines, tmp_path)
    meta.write_bytes(good_bytes[:150])
    assert "cars_meta.mat" in refused(machines, tmp_path)
    from scipy.io import savemat

    savemat(meta, {"class_names": np.array([["one", "two"]], dtype=object)})
    assert "00001.jpg: label 3 is out of range (1 to 2)" in refused(machines, tmp_path)


def test_wrong_image_folders(tmp_path: Path) -> None:
    def said(name: str) -> str:
        return refused(own("image_folder", path=name), tmp_path)

    tree(tmp_path / "odd" / "train", a=2, b=2)
    assert "has one folder, train; name that instead" in said("odd")
    tree(tmp_path / "odd" / "other", a=2, b=2)
    assert "has train, but neither test nor val" in said("odd")
    tree(tmp_path / "odd" / "test", a=2)
    assert "class b is only in one of train and test" in said("odd")
    tree(tmp_path / "lone", a=2, b=1)
    assert f"{tmp_path / 'lone' / 'b'}: needs at least two images" in said("lone")
    tree(tmp_path / "empty", a=2)
    touch(tmp_path / "empty" / "b" / "notes.txt")
    assert f"{tmp_path / 'empty' / 'b'}: no image in it" in said("empty")
    tree(tmp_path / "deep" / "deep", a=2, b=2)
    assert "name that instead" in said("deep")
    touch(tmp_path / "flat" / "1.png")
    assert "no folder in it" in said("flat")
    assert "not found" in said("nowhere")
    assert "test_percent: Input should be greater than or equal to 1" in refused(
        own("image_folder", path="lone", test_percent=0), tmp_path
    )


def test_an_unreadable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path / "mine", a=2, b=2)
    listed = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return listed(path)

    monkeypatch.setattr(os, "scandir", denied)  # root, as which tests may run, reads every folder
    assert f"{tmp_path / 'mine' / 'a'}: Permission denied" in refused(own("image_folder", path="mine"), tmp_path)


def test_omniglot_files_without_a_number(tmp_path: Path) -> None:
    touch(tmp_path / "omniglot-small" / "Latin" / "character01" / "drawing.png")
    assert "no drawing number at the end of its name" in refused(load_dataset_config("omniglot", []), tmp_path)
