"""What preparing a dataset once costs and saves.

Prints, for the embedded datasets, seconds to prepare and milliseconds to load again; for generated JPEG photos, images
a second of our preparation and of Pillow in one process on the same files, and their ratio; and the seconds from the
start of a process to its first training step on a prepared dataset.

Run with: python benchmarks/prepare.py [photos] (default: 1000)
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from joblib import cpu_count  # type: ignore[import-untyped]
from PIL import Image

from bench.config.files import load_dataset_config
from bench.config.schema import DatasetConfig, ImageConfig
from bench.data.dataset import Dataset, load_dataset

EMBEDDED = ("glyphs", "glyphs_rot90", "glyphs_xor", "glyphs_base", "digits")
PHOTO = (500, 400)
SHOWN = ImageConfig(size=224, resize=256, mean=[0.5] * 3, std=[0.5] * 3)
FIRST_STEP = """
import sys, time
from pathlib import Path
from bench.model.backbone import Backbone
from bench.data.dataset import load_dataset
from bench.method import Trainer
from bench.config.files import load_dataset_config, load_protocol, shown_image
from bench.data.stream import Stream
from bench.run.train import train

imported = time.time()
dataset, protocol = load_dataset_config("glyphs", []), load_protocol("embedded")
data = load_dataset(dataset, Path(sys.argv[1]))
loaded = time.time()

def first(step, total):
    print(imported, loaded, time.time())
    raise SystemExit

stream, backbone = Stream(data, 5, class_order_seed=0), Backbone(protocol, shown_image(protocol, dataset))
train(backbone, stream, stream.tasks[:1], Trainer(), backbone.pretrained, protocol, 0, progress=first)
"""


def main(photos: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        embedded(Path(folder))
        photographs(Path(folder), photos)
        first_step(Path(folder))


def embedded(data: Path) -> None:
    for key in EMBEDDED:
        config, seconds = load_dataset_config(key, []), []
        for _ in range(4):
            start = time.perf_counter()
            images = len(load_dataset(config, data).train_labels) + config.test
            seconds.append(time.perf_counter() - start)
        first, again = seconds[0], min(seconds[1:])
        print(f"{key:14} {images:6} images  {first:6.2f} s  {again * 1e3:6.1f} ms  ratio {first / again:5.0f}")


def photographs(data: Path, count: int) -> None:
    files = [
        photo(data / "photos" / split / str(i % 10) / f"{i}.jpg", i, split)
        for i in range(count // 2)
        for split in ("train", "test")
    ]
    config = DatasetConfig.model_validate({
        "key": "photos", "title": "", "layout": "image_folder", "options": {"path": "photos"}, "classes": 10,
        "train": count // 2, "test": count // 2, "tasks": [5], "image": {"size": None, "channels": 3},
    })  # fmt: skip
    start = time.perf_counter()
    dataset: Dataset = load_dataset(config, data, SHOWN)
    ours = len(files) / (time.perf_counter() - start)
    start = time.perf_counter()
    plain = [one_by_one(file) for file in files]
    theirs = len(files) / (time.perf_counter() - start)
    start = time.perf_counter()
    load_dataset(config, data, SHOWN)
    again = time.perf_counter() - start
    assert np.array_equal(plain[0], dataset.train_images[0].transpose(1, 2, 0))
    print(
        f"photos {PHOTO[0]}x{PHOTO[1]}  {len(files)} images  ours {ours:.0f} images/s on {cpu_count()} cores  "
        f"Pillow in one process {theirs:.0f} images/s  ratio {ours / theirs:.2f}  again {again * 1e3:.1f} ms"
    )


def photo(path: Path, seed: int, split: str) -> Path:
    """A smooth picture with some noise, so that its JPEG is about as large as a photograph's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, len(split)])
    coarse = Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8)).resize(PHOTO, Image.Resampling.BICUBIC)
    noise = rng.integers(-12, 13, (PHOTO[1], PHOTO[0], 3))
    Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return path


def one_by_one(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    width, height = (int(256 * side / min(rgb.size)) for side in rgb.size)
    left, top = round((width - 256) / 2), round((height - 256) / 2)
    rgb = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(rgb.crop((left, top, left + 256, top + 256)))


def first_step(data: Path) -> None:
    start = time.time()
    done = subprocess.run([sys.executable, "-c", FIRST_STEP, str(data)], capture_output=True, text=True, check=True)
    imported, loaded, stepped = (float(word) - start for word in done.stdout.split())
    print(
        f"first training step {stepped:.2f} s after the process started: imports {imported:.2f} s, "
        f"prepared dataset {(loaded - imported) * 1e3:.1f} ms, stream, backbone and step {stepped - loaded:.2f} s"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
