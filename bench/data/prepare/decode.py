"""One image file as the pixels that are kept of it. Preparing processes import this file, so it stands on little."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
import warnings
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1  # raise it when the same file gives other pixels
DIGEST_BYTES = 16


class Stored(NamedTuple):
    """How images are kept: squares of one size."""

    side: int
    mode: str  #: "shorter" side becomes ``side`` and the longer one is cut, or "squash"
    interpolation: str  #: "bilinear" or "bicubic", both with antialiasing
    crop: int  #: side of the centre crop that later cuts these squares: the two cuts together are as one


class Job(NamedTuple):
    """Consecutive images of one split, for one process."""

    files: list[str]
    out: str  #: the .npy file
    offset: int  #: in bytes, of the first of them
    stored: Stored
    channels: int


class Outcome(NamedTuple):
    """What became of one image file."""

    digest: bytes  #: of the file's bytes
    error: str  #: why it could not be read, or ""


def decode(job: Job) -> list[Outcome]:
    """Decode the images and write them to their place; one that cannot be read is told, and left black.

    Raises:
        OSError: the output cannot be written.
    """
    images = np.zeros((len(job.files), job.channels, job.stored.side, job.stored.side), dtype=np.uint8)
    outcomes = []
    for image, file in zip(images, job.files, strict=True):
        content, error = b"", ""
        try:
            content = Path(file).read_bytes()
            image[:] = decoded(content, job.stored, job.channels)
        except Exception as reason:  # Pillow's decoders raise nearly anything on damaged files
            error = " ".join(str(getattr(reason, "strerror", None) or reason or type(reason).__name__).split())
        outcomes.append(Outcome(digest(content), error))
    # Not through a memory map: on a full disk that would be a bus error.
    with open(job.out, "r+b") as out:
        out.seek(job.offset)
        out.write(images.data)
    return outcomes


def end_with_parent() -> None:
    """Ctrl-C is the parent's to handle, and where the parent is killed nobody else ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def digest(content: bytes | memoryview) -> bytes:
    """Under which equal files, or equal images, are found."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def decoded(content: bytes, stored: Stored, channels: int) -> np.ndarray:
    """The bytes of an image file as uint8 (channels, side, side).

    Raises:
        Exception: of any kind, where the file is damaged, too large or has pixels of another kind.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # oddities of metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content)) as image:
                return resized(flat(image, channels), stored)
        except UnidentifiedImageError:
            raise ValueError(
                "not an image, or of a kind that Pillow cannot read" if content else "empty file"
            ) from None


def flat(image: Image, channels: int) -> Image:
    """8 bits a channel: grey for 1, RGB for 3, as Pillow converts it (transparency is dropped, not blended in).

    Grey of 16 bits is scaled, where Pillow would clip it at 255.

    Raises:
        ValueError: pixels are floating-point or beyond 16 bits.
    """
    from PIL import Image as module

    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its pixels have more than 16 bits; save it with 8 or 16")
        image = module.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    return image.convert("RGB" if channels == 3 else "L")


def resized(image: Image, stored: Stored) -> np.ndarray:
    """uint8 (channels, side, side), equal to torchvision's Resize on Pillow images, then a centre crop.

    Raises:
        ValueError: one side is so much longer that the image would become huge.
    """
    from PIL import Image as module

    (width, height), side = image.size, stored.side
    if stored.mode == "squash":
        size = (side, side)
    else:
        longer = int(side * max(width, height) / min(width, height))
        size = (side, longer) if width <= height else (longer, side)
        if side * longer > (module.MAX_IMAGE_PIXELS or np.inf):
            raise ValueError(f"{width}x{height} pixels: too long and narrow")
    image = image.resize(size, module.Resampling[stored.interpolation.upper()])
    left, top = (round((long - stored.crop) / 2) - round((side - stored.crop) / 2) for long in size)
    values = np.asarray(image)[top : top + side, left : left + side]
    return values.reshape(side, side, -1).transpose(2, 0, 1)
