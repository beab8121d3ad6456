"""From a reader's images to files that are mapped ever after: checked, decoded by all cores, in place all at once."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from glob import escape
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from bench.common.errors import UserError
from bench.config.schema import DatasetConfig
from bench.data.prepare.counts import check
from bench.data.prepare.decode import DIGEST_BYTES, Job, Outcome, Stored, decode, digest, end_with_parent, resized
from bench.data.readers.reader import Arrays, Listing, where

ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
DOMAINS = ("train_domains", "test_domains")  # beside them where images have domains
BLOCK_BYTES = 8 << 20  # of pixels that a process holds at a time
FEW = 256  # so many images are decoded before other processes have started


def prepare(
    source: Arrays | Listing,
    config: DatasetConfig,
    stored: Stored,
    folder: Path,
    files: str = "",
    workers: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> None:
    """Write the dataset beside ``folder``, then rename; whatever goes wrong, what was there before stays as it was.

    Only called under the folder's lock. ``files`` tells the files that are read from what they may be later. The bytes
    do not depend on ``workers`` (0: all cores).

    Raises:
        UserError: counts or labels other than described, images that cannot be read, one file in both splits, or too
            little space.
        OSError: the folder cannot be written.
    """
    check(config, source)
    shape = (config.image.channels, stored.side, stored.side)
    _check_space(config, folder.parent, (config.train + config.test) * int(np.prod(shape)))
    for left in folder.parent.glob(f"{escape(folder.name)}.*.tmp"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(mkdtemp(dir=folder.parent, prefix=f"{folder.name}.", suffix=".tmp"))
    try:
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from the others on a shared disk
        for split, labels in (("train", source.train_labels), ("test", source.test_labels)):
            np.save(temporary / f"{split}_labels.npy", labels.astype(np.int64))
            np.lib.format.open_memmap(
                temporary / f"{split}_images.npy", mode="w+", dtype=np.uint8, shape=(len(labels), *shape)
            )
        names: tuple[str, ...] = ARRAYS
        if source.train_domains is not None and source.test_domains is not None:
            names = (*ARRAYS, *DOMAINS)
            for name, domains in zip(DOMAINS, (source.train_domains, source.test_domains), strict=True):
                np.save(temporary / f"{name}.npy", domains.astype(np.int64))
        if isinstance(source, Listing):
            seen = _decode_all(config, source, stored, temporary, workers, block_bytes)
        else:
            seen = _copy_all(source, stored, temporary)
        meta = {
            "digest": digest_of(mapped(temporary, names), (*source.class_names, *source.domain_names)),
            "class_names": source.class_names,
            "domain_names": source.domain_names,
            "train": config.train,
            "test": config.test,
            "bytes": {name: (temporary / f"{name}.npy").stat().st_size for name in names},
            "options": config.options,
            "files": files,
            "stored": stored._asdict(),
            "duplicates": _duplicates(config, source, seen),
        }
        (temporary / "meta.json").write_text(json.dumps(meta, ensure_ascii=False, indent=1), encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            shutil.rmtree(folder)  # damaged, or nobody would prepare it again
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def mapped(folder: Path, names: Sequence[str] = ARRAYS) -> list[np.ndarray]:
    """These arrays of a prepared folder, read-only.

    Raises:
        OSError, ValueError: one is missing or damaged.
    """
    return [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]


def digest_of(arrays: Sequence[np.ndarray], names: Iterable[str]) -> str:
    """128-bit hex of the dtypes, shapes and bytes of a dataset's arrays (of ``ARRAYS``, and of ``DOMAINS`` where images
    have domains), and of the names of its classes and domains.
    """
    state = hashlib.blake2b(digest_size=16)
    for name, array in zip((*ARRAYS, *DOMAINS), arrays, strict=False):
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        for block in _blocks(array):
            state.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    state.update(json.dumps(tuple(names)).encode())
    return state.hexdigest()


def _check_space(config: DatasetConfig, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{where(config)}: preparing it takes {needed} bytes and {folder} has {free} free; make room, or name "
            "another data folder with --data or CLMERGE_DATA"
        )


def _copy_all(source: Arrays, stored: Stored, folder: Path) -> np.ndarray:
    """Write images that are in memory.

    Returns:
        (train + test,) digests of the images as they were given.
    """
    from PIL import Image

    seen = []
    for split, images in (("train", source.train_images), ("test", source.test_images)):
        path = folder / f"{split}_images.npy"
        with path.open("r+b") as out:
            out.seek(_offset(path))
            for block in _blocks(images):
                seen += [digest(image.tobytes()) for image in block]
                if block.shape[2:] != (stored.side, stored.side):
                    grey = block.shape[1] == 1
                    pictures = block[:, 0] if grey else block.transpose(0, 2, 3, 1)
                    block = np.stack([resized(Image.fromarray(picture), stored) for picture in pictures])
                out.write(np.ascontiguousarray(block).data)
    return np.array(seen, dtype=f"S{DIGEST_BYTES}")


def _decode_all(
    config: DatasetConfig, source: Listing, stored: Stored, folder: Path, workers: int, block_bytes: int
) -> np.ndarray:
    """Decode all files and write them.

    Returns:
        (train + test,) digests of the files.

    Raises:
        UserError: some cannot be read.
    """
    size = config.image.channels * stored.side**2
    step = max(1, min(64, block_bytes // size))
    jobs = []
    for split, files in (("train", source.train_files), ("test", source.test_files)):
        out = folder / f"{split}_images.npy"
        offset = _offset(out)
        for start in range(0, len(files), step):
            block = [str(file) for file in files[start : start + step]]
            jobs.append(Job(block, str(out), offset + start * size, stored, config.image.channels))
    seen, bad = [], []
    with _bar(config, len(source.train_files) + len(source.test_files)) as advance:
        for job, outcomes in zip(jobs, _run(config, jobs, workers), strict=True):
            seen.append(np.array([outcome.digest for outcome in outcomes], dtype=f"S{DIGEST_BYTES}"))
            bad += [f"{f}: {o.error}" for f, o in zip(job.files, outcomes, strict=True) if o.error]
            advance(len(outcomes))
        if bad:
            many = "1 image cannot be read" if len(bad) == 1 else f"{len(bad)} images cannot be read, the first"
            raise UserError(f"{where(config)}: {many}: {bad[0]}; extract the archive anew, or mend the files")
    return np.concatenate(seen)


def _run(config: DatasetConfig, jobs: list[Job], workers: int) -> Iterator[list[Outcome]]:
    """The jobs' outcomes in their order, by so many processes."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    count = workers or int(cpu_count())  # those of a container where this is one
    if count == 1 or (not workers and sum(len(job.files) for job in jobs) <= FEW):
        yield from map(decode, jobs)
        return
    # A forked process would have this one's threads' locks, and those of CUDA.
    pool = ProcessPoolExecutor(min(count, len(jobs)), mp_context=get_context("spawn"), initializer=end_with_parent)
    try:
        yield from pool.map(decode, jobs)
    except BrokenProcessPool:
        raise UserError(
            f"{where(config)}: a process that decodes images died, perhaps for want of memory; try it with fewer, by "
            "LOKY_MAX_CPU_COUNT=1 (and a script of your own needs: if __name__ == '__main__')"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _bar(config: DatasetConfig, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, and in the end one line."""
    from rich.console import Console
    from rich.file_proxy import FileProxy
    from rich.progress import MofNCompleteColumn, Progress

    console, start = Console(stderr=True, highlight=False, soft_wrap=True), time.perf_counter()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    taken = isinstance(sys.stderr, FileProxy)  # another live display is drawn on this screen
    with Progress(*columns, console=console, transient=True, disable=taken or not console.is_terminal) as progress:
        task = progress.add_task(f"preparing {config.key}", total=total)
        yield lambda done: progress.advance(task, done)
    seconds = time.perf_counter() - start
    console.print(f"prepared {config.key}: {total} images in {seconds:.1f} s, {total / seconds:.0f} images/s")


def _duplicates(config: DatasetConfig, source: Arrays | Listing, seen: np.ndarray) -> dict[str, int]:
    """How many test images are training images too, and how many training images were there before.

    Raises:
        UserError: the first number is not the one described.
    """
    train, test = seen[: config.train], seen[config.train :]
    both = np.flatnonzero(np.isin(test, train))
    if config.duplicates is not None and len(both) != config.duplicates:
        example = ""
        if len(both):
            i, j = int(np.argmax(train == test[both[0]])), int(both[0])
            pair = (source.train_files[i], source.test_files[j]) if isinstance(source, Listing) else (i, j)
            example = f", the first: training image {pair[0]} and test image {pair[1]}"
        raise UserError(
            f"{where(config)}: duplicates: says {config.duplicates}, but {len(both)} test images are training images "
            f"too{example}; take them out, or state the number where the publisher's data is so"
        )
    return {"across": len(both), "train": len(train) - len(np.unique(train))}


def _offset(path: Path) -> int:
    return int(np.load(path, mmap_mode="r").offset)


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield array[start : start + step]
