"""Where a backbone's weights come from: a file, a folder or the hub's cache. Torch-free, so that planning can check.

Nothing is unpickled: safetensors, or ``torch.load(weights_only=True)`` for ``.bin`` and ``.pth``.
"""

from __future__ import annotations

import functools
import hashlib
import textwrap
from pathlib import Path

from bench.common.errors import UserError
from bench.common.paths import weights_folder
from bench.config.files import weights_file
from bench.config.schema import ProtocolConfig
from bench.model.published_weights import PUBLISHED, file_of

HUB_FILE = "model.safetensors"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
TIMEOUT_S = 5  #: for the hub to say that it has a file


def check_weights(protocol: ProtocolConfig) -> None:
    """Whether the weights can be had, without loading them; a file that the hub has is left to the first who needs it.

    Raises:
        UserError: no such file, another checksum, a timm name without its tag, or no way to the hub.
    """
    file = _local(protocol)
    if file is not None:
        _verify(protocol, file)
    elif protocol.backbone.pretrained:
        _ask_hub(protocol)


def find_weights(protocol: ProtocolConfig) -> Path | None:
    """The file of the weights, fetched from the hub where it is not here yet; None: they are random.

    Raises:
        UserError: as :func:`check_weights`, or the download failed.
    """
    file = _local(protocol)
    if file is None and protocol.backbone.pretrained:
        from huggingface_hub import hf_hub_download

        _ask_hub(protocol)
        try:
            file = Path(hf_hub_download(_repository(protocol), HUB_FILE))
        except Exception as error:  # each version of the client brings the errors of its own HTTP library
            raise UserError(_offline(protocol, f"the download failed: {type(error).__name__}")) from None
    if file is not None:
        _verify(protocol, file)
    return file


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors; those of a training checkpoint's ``state_dict`` or ``model``.

    Raises:
        UserError: not such a file, or one that would have to be unpickled.
    """
    import pickle

    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        from timm.models import load_state_dict

        return {name: tuple(tensor.shape) for name, tensor in load_state_dict(str(file), weights_only=True).items()}
    except (
        SafetensorError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        why = textwrap.shorten(str(error) or type(error).__name__, 100)
        raise UserError(f"backbone.weights: {file} holds no plain tensors ({why}); save them as safetensors") from None


def weights_digest(protocol: ProtocolConfig) -> str | None:
    """SHA-256 of the file that is there now, kept while it does not change; None: random, or not fetched yet."""
    file = _local(protocol)
    return None if file is None else _sha256(file, file.stat().st_mtime_ns, file.stat().st_size)


def _local(protocol: ProtocolConfig) -> Path | None:
    """The file if it is on this machine: what ``weights`` names stands above the hub's cache."""
    config = protocol.backbone
    if config.weights is not None:
        path = weights_file(protocol)
        if path.is_file():
            return path
        if not path.is_dir():
            raise UserError(_absent(protocol, path))
        names = [f"{stem}{suffix}" for stem in (config.model, "model", "pytorch_model") for suffix in SUFFIXES]
        found = [path / name for name in names if (path / name).is_file()]
        if not found:
            raise UserError(f"protocol {protocol.key}: backbone.weights: the folder {path} holds no {names[0]}")
        return found[0]
    if not config.pretrained:
        return None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(_repository(protocol), HUB_FILE)
    return Path(cached) if isinstance(cached, str) else None


def _absent(protocol: ProtocolConfig, path: Path) -> str:
    """What to do about a file that is not there: others publish some, which a command fetches."""
    name = path.stem
    if name in PUBLISHED and path.name == file_of(name).name:
        return (
            f"protocol {protocol.key}: backbone.weights: {path.name} is not in {weights_folder()}; fetch it with: "
            f"clmerge weights {name}"
        )
    return f"protocol {protocol.key}: backbone.weights: no file {path}; make it with: clmerge pretrain"


def _repository(protocol: ProtocolConfig) -> str:
    """The hub's repository of a tagged timm model.

    Raises:
        UserError: no tag, or one that this timm does not know.
    """
    model = protocol.backbone.model
    if "." not in model:
        raise UserError(
            f"protocol {protocol.key}: backbone.model: the weights of a bare {model} depend on timm's version; "
            f"{_tags(model)}"
        )
    return f"timm/{model}"


def _tags(model: str) -> str:
    import timm

    tags = timm.list_pretrained(f"{model.split('.')[0]}.*")
    return f"name them in full: {', '.join(tags)}" if tags else "timm has none: set backbone.pretrained=false"


def _ask_hub(protocol: ProtocolConfig) -> None:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

    repository = _repository(protocol)
    if constants.HF_HUB_OFFLINE:
        raise UserError(_offline(protocol, "the hub's client is set to be offline"))
    try:
        get_hf_file_metadata(hf_hub_url(repository, HUB_FILE), timeout=TIMEOUT_S)
    except (RepositoryNotFoundError, EntryNotFoundError):
        raise UserError(
            f"protocol {protocol.key}: backbone.model: the hub has no {repository}; {_tags(protocol.backbone.model)} "
            "(or name a file: backbone.weights)"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(_offline(protocol, str(error).splitlines()[0])) from None
    except Exception as error:  # as above
        raise UserError(_offline(protocol, f"it cannot be reached: {type(error).__name__}")) from None


def _offline(protocol: ProtocolConfig, why: str) -> str:
    repository, model = _repository(protocol), protocol.backbone.model
    return (
        f"protocol {protocol.key}: backbone.pretrained: the weights are not on this machine and the hub gives none "
        f"({why}); fetch {HUB_FILE} of https://huggingface.co/{repository} elsewhere, put it at "
        f"FOLDER/{model}.safetensors and add --protocol-set backbone.weights=FOLDER (an absolute path), or "
        "--protocol-set backbone.pretrained=false for random weights"
    )


def _verify(protocol: ProtocolConfig, file: Path) -> None:
    wanted = protocol.backbone.sha256
    if wanted and _sha256(file, file.stat().st_mtime_ns, file.stat().st_size) != wanted:
        raise UserError(
            f"protocol {protocol.key}: backbone.sha256: {file} has another checksum; restore the file (git "
            "checkout, or clmerge weights) or, if you pre-trained anew, write its checksum into a protocol of your own"
        )


@functools.lru_cache(maxsize=16)
def _sha256(file: Path, changed: int, size: int) -> str:
    state = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 24):
            state.update(block)
    return state.hexdigest()
