from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig, ImageConfig
from bench.data.dataset import READERS, load_dataset, prepared_key, stored
from bench.data.prepare import decode, prepare
from bench.data.prepare.decode import Job, Stored, decoded
from bench.data.readers.reader import Arrays, Listing, Reader

SHOWN = ImageConfig(size=12, resize=16, mean=[0.5] * 3, std=[0.5] * 3)
OWN = Stored(8, "shorter", "bicubic", 8)


def photo(seed: int, width: int = 21, height: int = 17) -> Image.Image:
    """Noise over a gradient: every pixel and every shift matters."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.linspace(0, 120, height), np.linspace(0, 80, width))[..., None]
    return Image.fromarray((slope + rng.integers(0, 56, (height, width, 3))).astype(np.uint8))


def tree(root: Path, classes: int = 2, train: int = 3, test: int = 2) -> Path:
    """``<split>/<class>/<number>.png`` of sizes that differ."""
    for split, count in (("train", train), ("test", test)):
        for label in range(classes):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(count):
                seed = 1000 * label + 10 * i + len(split)
                photo(seed, 15 + seed % 7, 14 + seed % 5).save(folder / f"{i}.png")
    return root


def listing(root: Path) -> Listing:
    def split(name: str) -> tuple[list[Path], np.ndarray]:
        files = sorted((root / name).glob("*/*"))
        return files, np.array([int(file.parent.name[-1]) for file in files], dtype=np.int64)

    return Listing(*split("train"), *split("test"), tuple(f"class {i}" for i in range(10))[:2])


def described(**changes: Any) -> DatasetConfig:
    said: dict[str, Any] = {
        "key": "made", "title": "", "layout": "made", "classes": 2, "train": 6, "test": 4, "tasks": [1],
        "image": {"size": None, "channels": 3},
    }  # fmt: skip
    return DatasetConfig.model_validate({**said, **changes})


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of images that ``layout: made`` reads."""
    root = tree(tmp_path / "images")
    monkeypatch.setitem(
        READERS,
        "made",
        Reader(1, lambda config, data: listing(root), lambda config, data: None, lambda config, data: [root]),
    )
    return root


def folders(data: Path) -> list[str]:
    return sorted(path.name for path in (data / "prepared").glob("*") if path.suffix != ".lock")


SIZES = [(40, 30), (30, 40), (33, 33), (24, 24), (57, 25), (25, 56), (26, 25), (101, 24), (13, 12)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "size", "mode"), [
    (24, 24, "shorter"), (24, 16, "shorter"), (25, 19, "shorter"), (26, 19, "shorter"), (24, 24, "squash"), (24, 20, "squash"),
])  # fmt: skip
def test_what_is_kept_is_torchvisions_test_view(interpolation: str, resize: int, size: int, mode: str) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    theirs = Compose([
        Resize(resize if mode == "shorter" else (resize, resize), InterpolationMode(interpolation)), CenterCrop(size)
    ])  # fmt: skip
    image = ImageConfig.model_validate(
        {"size": size, "resize": resize, "mode": mode, "interpolation": interpolation, "mean": [0.5], "std": [0.5]}
    )
    keep, edge = stored(described(), image), round((resize - size) / 2)
    for i, sides in enumerate(SIZES):
        source = photo(i, *sides)
        ours = decode.resized(source, keep)[:, edge : edge + size, edge : edge + size]
        np.testing.assert_array_equal(ours.transpose(1, 2, 0), np.asarray(theirs(source)), err_msg=str(sides))


def test_stored_is_own_size_unless_it_is_larger_than_what_is_shown(made: Path) -> None:
    small, large = described(image={"size": 16, "channels": 3}), described(image={"size": 17, "channels": 3})
    assert stored(small) == stored(small, SHOWN) == Stored(16, "shorter", "bicubic", 16)
    assert stored(large) == Stored(17, "shorter", "bicubic", 17)
    assert stored(large, SHOWN) == stored(described(), SHOWN) == Stored(16, "shorter", "bicubic", 12)
    assert prepared_key(small) == prepared_key(small, SHOWN)
    assert prepared_key(large) != prepared_key(large, SHOWN)
    shown = [SHOWN.model_copy(update=change) for change in (
        {}, {"size": 14}, {"resize": 15}, {"interpolation": "bilinear"}, {"mode": "squash"}
    )]  # fmt: skip
    assert len({prepared_key(described(), image) for image in shown}) == len(shown)
    assert prepared_key(described(), SHOWN.model_copy(update={"mean": [0.1] * 3})) == prepared_key(described(), SHOWN)
    with pytest.raises(UserError, match=r"dataset made: image\.size: .* protocol"):
        prepared_key(described())


def test_key_is_of_what_decides_the_arrays_on_any_machine(made: Path) -> None:
    files = [{"name": "a.zip", "url": "https://example.org/a.zip"}]
    key = prepared_key(described(), SHOWN)
    for words in ({"title": "x"}, {"about": "x"}, {"get": "x"}, {"tasks": [2]}, {"files": files}, {"duplicates": None}):
        assert prepared_key(described(**words), SHOWN) == key
    for change in ({"options": {"n": 1}}, {"train": 7}, {"image": {"size": 9, "channels": 3}}, {"key": "other"}):
        assert prepared_key(described(**change), SHOWN) != key
    paths = ["/one/birds", "/two/birds", "~/birds", "birds"]
    assert len({prepared_key(described(options={"path": path, "n": [1]}), SHOWN) for path in paths}) == 1


def test_another_absolute_path_is_not_taken_for_the_first(tmp_path: Path, made: Path) -> None:
    one, two = (described(options={"path": f"/{place}/birds"}) for place in ("one", "two"))
    digest = load_dataset(one, tmp_path, SHOWN).digest
    with pytest.raises(UserError, match="/one/birds"):
        load_dataset(two, tmp_path, SHOWN)
    assert load_dataset(one, tmp_path, SHOWN).digest == digest


def test_images_labels_and_record_of_a_listing(tmp_path: Path, made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = load_dataset(described(), tmp_path, SHOWN)
    assert data.train_images.shape == (6, 3, 16, 16)
    assert data.test_images.shape == (4, 3, 16, 16)
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    for images, files in zip((data.train_images, data.test_images), listing(made)[::2], strict=False):
        for image, file in zip(images, files, strict=True):
            np.testing.assert_array_equal(image, decoded(file.read_bytes(), stored(described(), SHOWN), 3))
    meta = json.loads((tmp_path / "prepared" / folders(tmp_path)[0] / "meta.json").read_text())
    assert meta["duplicates"] == {"across": 0, "train": 0}
    assert capfd.readouterr().err.startswith("prepared made: 10 images in ")
    load_dataset(described(), tmp_path, SHOWN)
    assert capfd.readouterr() == ("", "")


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path, made: Path) -> None:
    two_images = 2 * 3 * 16 * 16
    keep = stored(described(), SHOWN)
    for workers in (1, 3):
        prepare.prepare(
            listing(made), described(), keep, tmp_path / str(workers), workers=workers, block_bytes=two_images
        )
    for name in ("meta.json", *(f"{array}.npy" for array in prepare.ARRAYS)):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_larger_than_shown_are_resized_as_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    pictures = [photo(i, 20, 20).convert("RGB" if channels == 3 else "L") for i in range(4)]
    images = np.stack([np.asarray(p).reshape(20, 20, channels).transpose(2, 0, 1) for p in pictures])
    labels = np.array([0, 1], dtype=np.int64)
    source = Arrays(images[:2], labels, images[2:], labels, ("a", "b"))
    monkeypatch.setitem(
        READERS, "made", Reader(1, lambda config, data: source, lambda config, data: None, lambda config, data: [])
    )
    config = described(train=2, test=2, image={"size": 20, "channels": channels})
    data = load_dataset(config, tmp_path, SHOWN)
    np.testing.assert_array_equal(data.test_images[1], decode.resized(pictures[3], stored(config, SHOWN)))
    np.testing.assert_array_equal(load_dataset(config, tmp_path).test_images, images[2:])


def _content(image: Image.Image, kind: str, **options: Any) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_the_channels_wanted_as_pillow_converts(mode: str) -> None:
    image = photo(3, 8, 8).convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)))  # dropped, not blended in
    content = _content(image, "TIFF")
    for channels, to in ((1, "L"), (3, "RGB")):
        wanted = np.asarray(image.convert(to)).reshape(8, 8, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(decoded(content, OWN, channels), wanted)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for channels in (1, 3):
        image = decoded(_content(Image.fromarray(values), kind), OWN, channels)
        assert image.shape == (channels, 8, 8)
        np.testing.assert_array_equal(image[-1], np.rint(values / 257))


def test_orientation_tag_is_ignored() -> None:
    image, tag = photo(1, 8, 8), Image.Exif()
    tag[0x0112] = 6
    np.testing.assert_array_equal(
        decoded(_content(image, "PNG", exif=tag), OWN, 3), np.asarray(image).transpose(2, 0, 1)
    )


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(("content", "word"), [
    (lambda: b"", "empty"),
    (lambda: b"<html>404</html>", "not an image"),
    (lambda: _cut(_content(photo(1, 99, 99), "JPEG")), "truncated"),
    (lambda: _cut(_content(photo(1), "PNG")), ""),
    (lambda: _content(Image.fromarray(np.ones((4, 4), dtype=np.float32)), "TIFF"), "floating-point"),
    (lambda: _content(Image.fromarray(np.full((4, 4), 70000, dtype=np.int32)), "TIFF"), "16 bits"),
    (lambda: _content(photo(1, 2000, 1), "PNG"), "long and narrow"),
    (lambda: _content(photo(1, 200, 101), "PNG"), "exceeds limit"),
], ids=["empty", "page", "half-jpeg", "half-png", "float", "32-bit", "narrow", "bomb"])  # fmt: skip
def test_image_that_cannot_be_read_is_named_and_leaves_all_as_it_was(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, content: Any, word: str
) -> None:
    config = described()
    before = load_dataset(described(options={"n": 1}), tmp_path, SHOWN)
    left = folders(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    bad = made / "test" / "class 1" / "1.png"
    bad.write_bytes(content())
    with pytest.raises(UserError) as error:
        load_dataset(config, tmp_path, SHOWN)
    message = str(error.value)
    assert message.startswith(f"dataset made: 1 image cannot be read: {bad}: ")
    assert word in message
    assert "\n" not in message
    (made / "train" / "class 0" / "0.png").unlink()
    (made / "train" / "class 0" / "0.png").mkdir()
    with pytest.raises(UserError, match=r"2 images cannot be read, the first: .*class 0/0\.png: Is a directory"):
        load_dataset(config, tmp_path, SHOWN)
    assert folders(tmp_path) == left
    kept = json.loads((tmp_path / "prepared" / left[0] / "meta.json").read_text())
    assert kept["digest"] == before.digest  # though it is of other files than now, and not used any more


def test_one_file_in_both_splits(tmp_path: Path, made: Path) -> None:
    shutil.copy(made / "train" / "class 0" / "2.png", made / "test" / "class 1" / "0.png")
    shutil.copy(made / "train" / "class 0" / "2.png", made / "train" / "class 1" / "1.png")
    with pytest.raises(UserError, match=r"duplicates: says 0, but 1 .*train/class 0/2\.png and .*test/class 1/0\.png"):
        load_dataset(described(), tmp_path, SHOWN)
    with pytest.raises(UserError, match="duplicates: says 2, but 1"):
        load_dataset(described(duplicates=2), tmp_path, SHOWN)
    assert folders(tmp_path) == []
    for known in (1, None):
        load_dataset(described(duplicates=known), tmp_path, SHOWN)
    meta = json.loads((tmp_path / "prepared" / folders(tmp_path)[0] / "meta.json").read_text())
    assert meta["duplicates"] == {"across": 1, "train": 1}


@pytest.mark.parametrize(("changes", "labels", "word"), [
    ({"classes": 3}, None, "classes: says 3, but the data has 2"),
    ({"train": 7}, None, "train: says 7, but the data has 6"),
    ({}, [0, 0, 1, 2], "test: 1 labels are not within 0 to 1, the first: 2 of image 3"),
    ({}, [0, -1, 1, 1], "test: 1 labels are not within 0 to 1, the first: -1 of image 1"),
    ({}, [0, 0, 0, 0], "test: 1 of 2 classes have no image, the first: 'class 1'"),
    ({"per_class": {"test": 2}}, [0, 0, 0, 1], "per_class.test: says 2, but 2 classes have other numbers of images, the first: 'class 0' with 3"),
    ({"per_class": {"train": [1, 2]}}, None, "per_class.train: says 1 to 2, but 2"),
])  # fmt: skip
def test_counts_and_labels_are_held_against_the_description(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], labels: Any, word: str
) -> None:
    source = listing(made)
    if labels is not None:
        source = source._replace(test_labels=np.array(labels))
    monkeypatch.setitem(
        READERS, "made", Reader(1, lambda config, data: source, lambda config, data: None, lambda config, data: [])
    )
    with pytest.raises(UserError) as error:
        load_dataset(described(**changes), tmp_path, SHOWN)
    assert str(error.value).startswith(f"dataset made: {word}")
    assert folders(tmp_path) == []


def test_too_little_space_is_told_before_anything_is_decoded(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7000))
    with pytest.raises(UserError, match=r"takes 7680 bytes and .* has 7000 free"):
        load_dataset(described(), tmp_path, SHOWN)
    assert folders(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_that_fills_up_is_told(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = stored(described(), SHOWN)
    with pytest.raises(OSError, match="No space left"):
        decode.decode(Job([str(listing(made).train_files[0])], "/dev/full", 0, keep, 3))

    def full(job: Job) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", job.out)

    monkeypatch.setattr(prepare, "decode", full)
    with pytest.raises(UserError, match="the disk is full"):
        load_dataset(described(), tmp_path, SHOWN)
    assert folders(tmp_path) == []


SCRIPT = """
import sys
from pathlib import Path
from bench.data import dataset
from bench.data.prepare import prepare
from tests.data.test_prepare import READERS, Reader, described, listing, SHOWN

if __name__ == "__main__":
    prepare.FEW, prepare.BLOCK_BYTES = 0, 1
    source = listing(Path(sys.argv[1]))
    READERS["made"] = Reader(1, lambda config, data: source, lambda config, data: None, lambda config, data: [])
    config = described(train=len(source.train_files), test=len(source.test_files))
    print(dataset.load_dataset(config, Path(sys.argv[2]), SHOWN).digest)
"""


def start(tmp_path: Path, root: Path, data: Path) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    here = Path(__file__).parent.parent.parent
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(data)], cwd=here, env={"PYTHONPATH": str(here), "PATH": "", "LOKY_MAX_CPU_COUNT": "2"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_at_once_prepare_once(tmp_path: Path, made: Path) -> None:
    both = [start(tmp_path, made, tmp_path / "data") for _ in range(2)]
    printed = [process.communicate(timeout=60) for process in both]
    here = load_dataset(described(), tmp_path / "here", SHOWN)
    assert [out.strip() for out, _ in printed] == [here.digest] * 2
    assert sorted(err.count("prepared made") for _, err in printed) == [0, 1]
    assert folders(tmp_path / "data") == folders(tmp_path / "here")


def test_killed_in_the_middle_leaves_nothing_that_is_trusted_and_no_process(tmp_path: Path) -> None:
    root, data = tree(tmp_path / "many", 2, 600, 1), tmp_path / "data"
    process = start(tmp_path, root, data)

    def begun() -> bool:
        halves = list((data / "prepared").glob("*.tmp/train_images.npy"))
        return bool(halves) and any(halves[0].read_bytes()[128:])  # after the header

    deadline = time.monotonic() + 60
    while not begun():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.communicate()
    assert len(folders(data)) == 1
    assert folders(data)[0].endswith(".tmp")
    assert psutil.wait_procs(workers, timeout=20)[1] == []
    out, err = start(tmp_path, root, data).communicate(timeout=60)
    assert "prepared made: 1202 images" in err
    assert len(folders(data)) == 1
    assert not folders(data)[0].endswith(".tmp")
    prepared = np.load(data / "prepared" / folders(data)[0] / "train_images.npy", mmap_mode="r")
    assert prepared.reshape(1200, -1).any(axis=1).all()
    assert len(out.strip()) == 32
