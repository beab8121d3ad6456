"""What preparing a dataset once saves: seconds to prepare it, milliseconds to load it again, and their ratio.

Run with: python benchmarks/prepare.py [dataset ...]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from bench.config import load_dataset_config
from bench.data.dataset import load_dataset

EMBEDDED = ("glyphs", "glyphs_rot90", "glyphs_xor", "glyphs_base", "digits")


def main(keys: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for key in keys or EMBEDDED:
            config, seconds = load_dataset_config(key, []), []
            for _ in range(4):
                start = time.perf_counter()
                images = len(load_dataset(config, Path(folder)).train_labels) + config.test
                seconds.append(time.perf_counter() - start)
            first, again = seconds[0], min(seconds[1:])
            print(f"{key:14} {images:6} images  {first:6.2f} s  {again * 1e3:6.1f} ms  ratio {first / again:5.0f}")


if __name__ == "__main__":
    main(sys.argv[1:])
