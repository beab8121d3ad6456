from __future__ import annotations

import json
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from bench.common.errors import UserError
from bench.config.files import load_dataset_config
from bench.config.schema import DatasetConfig
from bench.data import dataset as module
from bench.data.dataset import Dataset, availability, load_dataset, prepared_key
from bench.data.readers import glyphs
from bench.data.readers.digits import enlarge

STREAMS = ("glyphs", "glyphs_rot90", "glyphs_xor")
EMBEDDED = (*STREAMS, "glyphs_base", "digits")
DIGITS_DIGEST = "d12e6663871684c59df2aed147f044b8"  # whole-number arithmetic on fixed data: the same everywhere


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    folder = tmp_path_factory.mktemp("data")
    return {key: load_dataset(load_dataset_config(key, []), folder) for key in EMBEDDED}


def changed(key: str, **changes: Any) -> DatasetConfig:
    """A dataset's description with other fields; ``options`` are merged."""
    config = load_dataset_config(key, [])
    changes["options"] = {**config.options, **changes.get("options", {})}
    return DatasetConfig.model_validate({**config.model_dump(), **changes})


def small(**options: Any) -> DatasetConfig:
    """Three classes of two faces a split, one image a face."""
    faces = {"faces_train": ["Sans", "Serif"], "faces_test": ["SansMono"]}
    options = {"classes": 3, **faces, "per_face_train": 1, "per_face_test": 1, **options}
    train = 3 * len(options["faces_train"]) * options["per_face_train"]
    test = 3 * len(options["faces_test"]) * options["per_face_test"]
    return changed("glyphs", options=options, classes=3, train=train, test=test)


@pytest.mark.parametrize("key", EMBEDDED)
def test_counts_types_and_range(prepared: dict[str, Dataset], key: str) -> None:
    config, data = load_dataset_config(key, []), prepared[key]
    for images, labels, count in (
        (data.train_images, data.train_labels, config.train),
        (data.test_images, data.test_labels, config.test),
    ):
        assert images.shape == (count, 1, 16, 16)
        assert images.dtype == np.uint8
        assert labels.shape == (count,)
        assert labels.dtype == np.int64
        assert images.min() == 0
        assert images.max() == 255
        per_class = np.bincount(labels, minlength=config.classes)
        assert len(per_class) == config.classes == len(data.class_names) == len(set(data.class_names))
        if key != "digits":
            assert set(per_class) == {count // config.classes}
    assert availability(config, Path("nowhere")) is None


@pytest.mark.parametrize("key", EMBEDDED)
def test_no_image_stands_twice(prepared: dict[str, Dataset], key: str) -> None:
    # Neither in both splits nor in two classes.
    data = prepared[key]
    everything = np.concatenate([data.train_images, data.test_images]).reshape(-1, 256)
    assert len({row.tobytes() for row in everything}) == len(everything)


@pytest.mark.parametrize("key", STREAMS)
def test_stream_test_faces_are_never_trained_on(key: str) -> None:
    options = load_dataset_config(key, []).options
    assert set(options["faces_train"]).isdisjoint(options["faces_test"])
    assert set(options["faces_train"]) | set(options["faces_test"]) == set(glyphs.FACES)


def test_images_are_of_the_faces_named(tmp_path: Path) -> None:
    data = load_dataset(small(jitter=0.0), tmp_path)
    wanted = [(c, face) for c in data.class_names for face in ("Sans", "Serif")]
    for image, (character, face) in zip(data.train_images, wanted, strict=True):
        plain = glyphs.drawing(glyphs._font(face), character)
        np.testing.assert_array_equal(image, np.rint(glyphs.pooled(plain) * 255))
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_shifted_streams_are_exactly_the_plain_one_shifted(prepared: dict[str, Dataset]) -> None:
    mask = np.kron([[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]], np.ones((4, 4), dtype=int)).astype(bool)
    for split in ("train", "test"):
        plain, turned, inverted = (getattr(prepared[key], f"{split}_images") for key in STREAMS)
        np.testing.assert_array_equal(turned[:, :, ::-1], plain.swapaxes(2, 3))  # counter-clockwise
        np.testing.assert_array_equal(inverted[..., ~mask], plain[..., ~mask])
        np.testing.assert_array_equal(inverted[..., mask], 255 - plain[..., mask])
        labels = [getattr(prepared[key], f"{split}_labels") for key in STREAMS]
        assert all(np.array_equal(labels[0], other) for other in labels)
    assert len({prepared[key].digest for key in STREAMS}) == 3


@given(any_array(np.uint8, (2, 16, 16)))
def test_shifts_can_be_undone(images: np.ndarray) -> None:
    again = images
    for _ in range(4):
        again = glyphs.shifted(again, "rot90")
    np.testing.assert_array_equal(again, images)
    np.testing.assert_array_equal(glyphs.shifted(glyphs.shifted(images, "xor"), "xor"), images)
    np.testing.assert_array_equal(glyphs.shifted(images, "none"), images)


def test_bank_classes_look_different_in_every_face() -> None:
    base, stream = glyphs.characters("base"), glyphs.characters("stream")
    assert len(base) >= 200
    assert len(stream) >= 100
    for face in ("Sans-Bold", "SansMono-Oblique", "Serif-Italic"):
        pictures = glyphs.pooled(np.stack([glyphs.drawing(glyphs._font(face), c) for c in base + stream]))
        likeness = np.corrcoef(pictures.reshape(len(pictures), -1))
        np.fill_diagonal(likeness, 0)
        assert likeness.max() <= glyphs.ALIKE + 1e-9


def test_letters_that_a_face_draws_wrongly_are_no_classes() -> None:
    # In DejaVu Sans Mono Oblique U+04CB and U+04F6 have each other's or another letter's drawing.
    assert not {"\u04cb", "\u04f6"} & set(glyphs.characters("stream"))


def test_stream_scripts_are_new_to_the_base(prepared: dict[str, Dataset]) -> None:
    def scripts(names: tuple[str, ...]) -> set[str]:
        return {unicodedata.name(unicodedata.normalize("NFKC", c)[0]).split()[0] for c in names}

    assert scripts(prepared["glyphs"].class_names) <= set(glyphs.SCRIPTS)
    assert scripts(prepared["glyphs_base"].class_names).isdisjoint(glyphs.SCRIPTS)


def test_jitter_of_a_face_does_not_depend_on_the_other_options(tmp_path: Path) -> None:
    one = load_dataset(small(faces_train=["Serif"], per_face_train=2), tmp_path)
    both = load_dataset(small(faces_train=["Sans", "Serif"], per_face_train=2), tmp_path)
    other_seed = load_dataset(small(faces_train=["Serif"], per_face_train=2, seed=1), tmp_path)
    np.testing.assert_array_equal(
        both.train_images.reshape(3, 2, 2, 16, 16)[:, 1].reshape(-1, 1, 16, 16), one.train_images
    )
    assert (other_seed.train_images != one.train_images).any(axis=(1, 2, 3)).all()


def test_same_options_same_digest_in_another_process(tmp_path: Path) -> None:
    here = load_dataset(small(), tmp_path / "here")
    config = small().model_dump_json()
    script = (
        "import sys; from pathlib import Path; from bench.config.schema import DatasetConfig\n"
        "from bench.data.dataset import load_dataset\n"
        "print(load_dataset(DatasetConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])).digest)"
    )
    # Two at once on one folder: one prepares, the other waits for it.
    command = [sys.executable, "-c", script, config, str(tmp_path / "there")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in processes] == [here.digest] * 2
    names = [path.name for path in (tmp_path / "there" / "prepared").iterdir() if not path.name.endswith(".lock")]
    assert names == [f"glyphs-{prepared_key(small())}"]


def test_prepared_is_reused_fast_and_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_dataset_config("digits", [])
    first = load_dataset(config, tmp_path)
    monkeypatch.setattr(module, "READERS", {"digits": module.READERS["digits"]._replace(read=None)})
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        again = load_dataset(config, tmp_path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.05
    assert again.digest == first.digest
    assert isinstance(again.train_images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        again.train_images[0] = 0


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("train_images.npy", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("test_labels.npy", _flip),
        ("train_labels.npy", Path.unlink),
        ("meta.json", lambda path: path.write_text("{")),
        ("meta.json", lambda path: path.write_text("[1]")),
        ("meta.json", lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "digest": "0"}))),
        ("meta.json", Path.unlink),
    ],
    ids=["cut", "flipped", "gone", "half-json", "other-json", "other-digest", "no-meta"],
)
def test_damaged_folder_is_rebuilt(tmp_path: Path, file: str, damage: Any) -> None:
    config = load_dataset_config("digits", [])
    load_dataset(config, tmp_path)
    folder = tmp_path / "prepared" / f"digits-{prepared_key(config)}"
    damage(folder / file)
    left_by_a_killed_process = folder.with_name(folder.name + ".killed.tmp")
    left_by_a_killed_process.mkdir()
    (left_by_a_killed_process / "train_images.npy").write_bytes(b"half")
    assert load_dataset(config, tmp_path).digest == DIGITS_DIGEST
    assert json.loads((folder / "meta.json").read_text(encoding="utf-8"))["digest"] == DIGITS_DIGEST
    assert not left_by_a_killed_process.exists()


def test_prepared_key_follows_content_not_words() -> None:
    key = prepared_key(load_dataset_config("glyphs", []))
    assert prepared_key(changed("glyphs", title="other", about="other", tasks=[2])) == key
    assert prepared_key(changed("glyphs", options={"seed": 1})) != key
    assert prepared_key(changed("glyphs", test=1999)) != key


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        ("glyphs", {"options": {"clases": 3}}, ["options", "clases", "classes"]),
        ("glyphs", {"options": {"part": "bass"}}, ["options", "part"]),
        ("glyphs", {"options": {"classes": 5000}}, ["options.classes", "5000"]),
        ("glyphs", {"options": {"classes": 1}}, ["options", "classes"]),
        ("glyphs", {"options": {"faces_test": ["Sans-Italic"]}}, ["options.faces_test", "Sans-Italic"]),
        ("glyphs", {"options": {"faces_train": ["Sans", "Sans"]}}, ["options.faces_train", "twice"]),
        ("glyphs", {"options": {"faces_train": []}}, ["options", "faces_train"]),
        ("glyphs", {"options": {"jitter": 2}}, ["options", "jitter"]),
        ("glyphs", {"options": {"shift": "rot180"}}, ["options", "shift"]),
        ("digits", {"options": {"train_percent": 100}}, ["options", "train_percent"]),
        ("digits", {"layout": "digit"}, ["layout", "digits"]),
        ("digits", {"classes": 11}, ["classes", "11", "10"]),
        ("digits", {"train": 1000}, ["train", "1000", "1253"]),
        ("digits", {"test": 545}, ["test", "545", "544"]),
        ("digits", {"image": {"size": 8, "channels": 1, "mean": [0.0], "std": [1.0]}}, ["image", "8", "16"]),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, key: str, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_dataset(changed(key, **changes), tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"dataset {key}: ")
    for word in words:
        assert word in message
    assert not [path for path in (tmp_path / "prepared").glob("*") if path.is_dir()]


def test_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--data"):
        load_dataset(load_dataset_config("digits", []), tmp_path / "file")


def test_digits_split_is_fixed_and_by_file_order(prepared: dict[str, Dataset]) -> None:
    from sklearn.datasets import load_digits

    data = prepared["digits"]
    assert data.digest == DIGITS_DIGEST
    small_images, labels = load_digits(return_X_y=True)
    big = enlarge(small_images.reshape(-1, 8, 8).astype(np.int64))
    for label in range(10):
        own = big[labels == label]
        count = len(own) * 7 // 10
        np.testing.assert_array_equal(data.train_images[data.train_labels == label][:, 0], own[:count])
        np.testing.assert_array_equal(data.test_images[data.test_labels == label][:, 0], own[count:])


@given(any_array(np.int64, (2, 3, 4), elements=st.integers(0, 16)))
def test_enlarge(images: np.ndarray) -> None:
    big = enlarge(images)
    assert big.shape == (2, 6, 8)
    np.testing.assert_array_equal(big.swapaxes(1, 2), enlarge(images.swapaxes(1, 2)))
    np.testing.assert_array_equal(big[:, ::-1], enlarge(images[:, ::-1]))
    corners = (images[:, [0, 0, -1, -1], [0, -1, 0, -1]] * 255 + 8) // 16  # edges are repeated: corners stay
    np.testing.assert_array_equal(big[:, [0, 0, -1, -1], [0, -1, 0, -1]], corners)
    assert abs(big.mean() - images.mean() * 255 / 16) <= 0.5  # every pixel weighs the same


def test_enlarge_known_values() -> None:
    big = enlarge(np.array([[[0, 16]]]))
    np.testing.assert_array_equal(big[0], [[0, 64, 191, 255]] * 2)
    assert (enlarge(np.full((1, 8, 8), 16)) == 255).all()


def test_import_has_no_side_effects() -> None:
    script = (
        "import os, random, sys\n"
        "import numpy as np\n"
        "before = os.getcwd(), dict(os.environ), random.getstate(), np.random.get_state()[1].tolist()\n"
        "import bench.data, bench.data.dataset, bench.data.readers.glyphs, bench.data.readers.digits\n"
        "assert before == (os.getcwd(), dict(os.environ), random.getstate(), np.random.get_state()[1].tolist())\n"
        "heavy = {'torch', 'ray', 'matplotlib', 'pandas', 'scipy', 'sklearn', 'PIL', 'fontTools'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
