"""Drawn characters: an image stream that needs no download.

Twelve DejaVu faces come with matplotlib. Every character that all of them have, and that looks like no other, is a
class; an image is one face's drawing of it, jittered. Two parts share no character and no script: ``base`` to
pre-train a backbone on and ``stream`` to learn from task by task. A shift that all images of a stream share (a quarter
turn, or an inversion in fixed patches) is what makes adapting the backbone matter.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from bench.common.errors import UserError, unknown
from bench.config.schema import DatasetConfig, Section, check
from bench.data.readers.reader import Arrays, where

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

VERSION = 1  # raise it when the same options give other arrays

FAMILIES = {"Sans": "Oblique", "SansMono": "Oblique", "Serif": "Italic"}  # and what each calls its slant
FACES = tuple(
    family + style for family, slant in FAMILIES.items() for style in ("", "-Bold", f"-{slant}", f"-Bold{slant}")
)
SCRIPTS = ("ARMENIAN", "CYRILLIC", "GEORGIAN", "GREEK")  # the stream's; first words of the characters' Unicode names
POINTS, BOX, FIELD, SIDE = 48, 24, 32, 16  # drawn at, fitted into, of a field, pooled to (pixels)
THIN, ALIKE = 0.12, 0.92  # least aspect of a class; greatest cosine of two classes' centred pictures in any face
KIN = 0.55  # least cosine of a face's picture with its nearest other face's (Sans Mono Oblique has Ӌ and Ӷ mixed up)
GRID = 4  # control points an axis of the elastic jitter
PATCHES = np.array([[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)  # inverted by ``xor``


class GlyphOptions(Section):
    """Options of ``layout: glyphs``. A class has ``len(faces) * per_face`` images a split."""

    part: Literal["base", "stream"]
    classes: int = Field(ge=2)
    faces_train: list[str] = Field(min_length=1)
    faces_test: list[str] = Field(min_length=1)
    per_face_train: int = Field(ge=1)
    per_face_test: int = Field(ge=1)
    shift: Literal["none", "rot90", "xor"] = "none"
    jitter: float = Field(0.5, ge=0, le=1)  #: strength; 0 draws every image of a face alike
    seed: int = Field(0, ge=0)
    domains: Literal["none", "families"] = "none"  #: families: an image's domain is its face's: Sans, SansMono, Serif


def read(config: DatasetConfig, data_dir: Path) -> Arrays:
    """Draw the dataset: uint8 (N, 1, 16, 16), a pure function of the options, classes in order of their code points.

    Jitter is drawn from (seed, character, face, split), so variants that differ in ``shift``, ``classes`` or their
    faces share the drawings that they have in common.

    Raises:
        UserError: a wrong option.
    """
    options = check(config.options, GlyphOptions, f"{where(config)}: options")
    for name, faces in (("faces_train", options.faces_train), ("faces_test", options.faces_test)):
        for face in sorted(set(faces) - set(FACES)):
            raise unknown("face", face, FACES, f"{where(config)}: options.{name}")
        if len(set(faces)) < len(faces):
            raise UserError(f"{where(config)}: options.{name}: a face stands twice; name each once")
    bank = characters(options.part)
    if options.classes > len(bank):
        raise UserError(
            f"{where(config)}: options.classes: says {options.classes}, but part {options.part} has only {len(bank)}"
        )
    chosen = sorted(sorted(bank, key=_rank)[: options.classes])
    train = _draw(chosen, options.faces_train, options.per_face_train, 0, options)
    test = _draw(chosen, options.faces_test, options.per_face_test, 1, options)
    labels = np.arange(options.classes, dtype=np.int64)
    drawn = Arrays(
        train, labels.repeat(len(train) // len(chosen)), test, labels.repeat(len(test) // len(chosen)), tuple(chosen)
    )
    if options.domains == "none":
        return drawn
    return drawn._replace(
        train_domains=_families(options.faces_train, options.per_face_train, len(chosen)),
        test_domains=_families(options.faces_test, options.per_face_test, len(chosen)),
        domain_names=tuple(FAMILIES),
    )


def _families(faces: list[str], each: int, classes: int) -> np.ndarray:
    """The domain of every image, in the order in which they are drawn."""
    numbers = [list(FAMILIES).index(face.partition("-")[0]) for face in faces]
    return np.tile(np.repeat(np.array(numbers, dtype=np.int64), each), classes)


def _rank(character: str) -> bytes:
    """An order without meaning, in which one character more or less in the bank leaves the others where they are."""
    return hashlib.blake2b(character.encode(), digest_size=8).digest()


def shifted(images: np.ndarray, shift: str) -> np.ndarray:
    """Images (..., 16, 16) under the shift: a quarter turn counter-clockwise, or 255 - x in the marked 4x4 patches."""
    if shift == "rot90":
        return np.rot90(images, axes=(-2, -1))
    if shift == "xor":
        mask = PATCHES.repeat(SIDE // len(PATCHES), axis=0).repeat(SIDE // len(PATCHES), axis=1)
        return np.where(mask, 255 - images, images)
    return images


def _draw(chosen: list[str], faces: list[str], each: int, split: int, options: GlyphOptions) -> np.ndarray:
    fonts = [_font(face) for face in faces]
    images = np.empty((len(chosen), len(faces) * each, SIDE, SIDE), dtype=np.uint8)
    for row, character in enumerate(chosen):
        plain = np.stack([drawing(font, character) for font in fonts])
        generators = [np.random.default_rng([options.seed, ord(character), FACES.index(face), split]) for face in faces]
        images[row] = shifted(jittered(plain, generators, each, options.jitter), options.shift)
    return images.reshape(-1, 1, SIDE, SIDE)


def jittered(plain: np.ndarray, generators: list[np.random.Generator], each: int, strength: float) -> np.ndarray:
    """``each`` jittered 16x16 images of every plain drawing, face after face.

    Args:
        plain: (F, 32, 32) drawings, 0..1.
        generators: one a drawing; its draws alone decide the drawing's images.
        each: images a drawing.
        strength: 0 (no jitter) to 1.

    Returns:
        uint8 (F * each, 16, 16).
    """
    from scipy.ndimage import generate_binary_structure, grey_dilation, grey_erosion, map_coordinates

    uniform, elastic, noise = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (
                    g.uniform(-1, 1, (each, 8)) * strength,
                    g.standard_normal((each, 2, GRID, GRID)) * (0.07 * strength),
                    g.standard_normal((each, SIDE, SIDE)) * (0.15 * strength),
                )
                for g in generators
            ),
            strict=True,
        )
    )
    turn, scale, aspect, shear, right, down, stroke, contrast = uniform.T
    cross = generate_binary_structure(2, 1)[None]
    thick, thin = grey_dilation(plain, footprint=cross), grey_erosion(plain, footprint=cross)
    stroke = stroke[:, None, None]
    source = plain.repeat(each, axis=0)
    source = source + np.maximum(stroke, 0) * (thick.repeat(each, axis=0) - source)
    source = source + np.maximum(-stroke, 0) * (thin.repeat(each, axis=0) - source)

    # Where in the drawing each output pixel looks, in half fields from the centre: an affine map and a smooth bend.
    axis = (np.arange(FIELD) + 0.5) / FIELD * 2 - 1
    grow, stretch, slant = np.exp(0.15 * scale), np.exp(0.12 * aspect), 0.25 * shear
    cos, sin = np.cos(0.26 * turn), np.sin(0.26 * turn)
    x_of = np.stack([cos * grow * stretch, cos * grow * stretch * slant - sin * grow / stretch])
    y_of = np.stack([sin * grow * stretch, sin * grow * stretch * slant + cos * grow / stretch])
    tent = np.stack([np.interp(axis, np.linspace(-1, 1, GRID), row) for row in np.eye(GRID)], axis=1)
    bend = tent @ elastic @ tent.T
    x, y = (
        across[:, None, None] * axis + along[:, None, None] * axis[:, None] + move[:, None, None] + part
        for (across, along), move, part in (
            (x_of, 0.12 * right, bend[:, 0]),
            (y_of, 0.12 * down, bend[:, 1]),
        )
    )
    image = np.broadcast_to(np.arange(len(source))[:, None, None], x.shape)
    pixels = [image, (y + 1) * FIELD / 2 - 0.5, (x + 1) * FIELD / 2 - 0.5]
    warped = map_coordinates(source, pixels, order=1, mode="constant", prefilter=False)
    faded = pooled(warped) * (1 - 0.4 * (contrast + strength))[:, None, None] + noise
    return np.rint(faded.clip(0, 1) * 255).astype(np.uint8)


def pooled(fields: np.ndarray) -> np.ndarray:
    """(N, 32, 32) to (N, 16, 16), the mean of every 2x2 pixels."""
    return fields.reshape(-1, SIDE, FIELD // SIDE, SIDE, FIELD // SIDE).mean(axis=(2, 4))


def drawing(font: FreeTypeFont, character: str) -> np.ndarray:
    """A character as (32, 32) floats 0..1, its ink fitted into the middle 24x24 with its aspect kept.

    Raises:
        ValueError: the character leaves no ink.
    """
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (4 * POINTS, 4 * POINTS))
    ImageDraw.Draw(canvas).text((POINTS, POINTS), character, fill=255, font=font)
    ink = canvas.getbbox()
    if ink is None:
        raise ValueError(f"{character!r} leaves no ink")
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    factor = BOX / max(width, height)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    field = Image.new("L", (FIELD, FIELD))
    fitted = canvas.crop(ink).resize(size, Image.Resampling.BILINEAR)
    field.paste(fitted, ((FIELD - size[0]) // 2, (FIELD - size[1]) // 2))
    return np.asarray(field) / 255.0


@lru_cache(maxsize=len(FACES))
def _font(face: str) -> FreeTypeFont:
    from PIL import ImageFont

    # Basic layout: the same drawings whether or not this Pillow has a text shaper.
    return ImageFont.truetype(_font_path(face), POINTS, layout_engine=ImageFont.Layout.BASIC)


def _font_path(face: str) -> Path:
    from matplotlib import get_data_path

    return Path(get_data_path(), "fonts", "ttf", f"DejaVu{face}.ttf")


def characters(part: Literal["base", "stream"]) -> tuple[str, ...]:
    """The characters that a part of the bank may take as classes, in order of their code points."""
    return _bank()[part]


@lru_cache(maxsize=1)
def _bank() -> dict[str, tuple[str, ...]]:
    """Both parts: in every face, with ink and some width, alike over the faces, and unlike all that were kept before.

    The base is chosen first, so that the stream is new to a backbone trained on it in looks too, not only in name.
    """
    common = set.intersection(*(_covered(face) for face in FACES))
    candidates = [(part, c) for c in sorted(common) if (part := _part(c))]
    candidates.sort(key=lambda item: item[0])  # stable: "base" before "stream", code points within
    kept: dict[str, list[str]] = {"base": [], "stream": []}
    looks = np.zeros((len(FACES), len(candidates), SIDE * SIDE))  # centred unit pictures of those kept
    for part, character in candidates:
        try:
            pictures = np.stack([drawing(_font(face), character) for face in FACES])
        except ValueError:
            continue
        spans = np.stack([np.ptp(np.argwhere(picture), axis=0) + 1 for picture in pictures])
        small = pooled(pictures).reshape(len(FACES), -1)
        small -= small.mean(axis=1, keepdims=True)
        small /= np.linalg.norm(small, axis=1, keepdims=True)
        count = sum(map(len, kept.values()))
        others = looks[:, :count] @ small[:, :, None]
        own = small @ small.T - 2 * np.eye(len(FACES))  # a face is not its own nearest
        wide = (spans.min(axis=1) / spans.max(axis=1)).min() >= THIN
        if wide and own.max(axis=1).min() >= KIN and others.max(initial=-1) <= ALIKE:
            looks[:, count] = small
            kept[part].append(character)
    return {part: tuple(found) for part, found in kept.items()}


def _covered(face: str) -> set[str]:
    from fontTools.ttLib import TTFont

    with TTFont(_font_path(face), lazy=True) as font:
        return {chr(code) for code in font.getBestCmap()}


def _part(character: str) -> str | None:
    """Which part a character can be in: marks, modifiers, spaces and controls in none, of the stream's scripts letters.

    A stream's script is told by what a character stands for, so that the ohm sign is no base character.
    """
    import unicodedata

    if unicodedata.category(character) in {"Mn", "Mc", "Me", "Lm", "Sk", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"}:
        return None
    if unicodedata.name(unicodedata.normalize("NFKC", character)[0], "").startswith(SCRIPTS):
        return "stream" if character.isalpha() and not unicodedata.decomposition(character) else None
    return "base"
