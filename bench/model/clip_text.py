"""Class rows of a zero-shot head: CLIP's text encoder on every class's name in many phrases (arXiv:2103.00020).

Only this needs open_clip, an optional extra; runs read the file that it leaves (see model/class_rows.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from bench.common.errors import UserError
from bench.common.files import save_plain

TEMPLATES = Path(__file__).with_name("text_templates.yaml")


def templates(dataset: str, file: Path = TEMPLATES) -> list[str]:
    """The phrases for a dataset, ``{}`` standing for the class; those of ImageNet where it has none of its own.

    Raises:
        UserError: the file is not a mapping of datasets to phrases with one ``{}`` each.
    """
    try:
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
        phrases: list[str] = known[dataset] if dataset in known else known["default"]
        if all(phrase.count("{}") == 1 for phrase in phrases) and phrases:
            return phrases
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        pass
    raise UserError(f"{file}: expected a list of phrases with one {{}} each under {dataset!r} or 'default'")


def class_rows(encode: Callable[[list[str]], Tensor], scale: float, names: Sequence[str], phrases: list[str]) -> Tensor:
    """Rows of a zero-shot head.

    Args:
        encode: texts to embeddings (texts, D) of any length.
        scale: exp of CLIP's logit scale.
        names: class names in the order of the labels; underscores are spaces.
        phrases: as :func:`templates` gives them.

    Returns:
        float32 (classes, D): the mean of a class's embeddings of length 1, itself brought to length 1, times ``scale``.
    """
    rows = []
    for name in names:
        each = torch.nn.functional.normalize(encode([p.replace("{}", name.replace("_", " ")) for p in phrases]).float())
        rows.append(torch.nn.functional.normalize(each.mean(0), dim=0))
    return scale * torch.stack(rows)


def open_clip_encoder(model: str, weights: str, device: str = "cpu") -> tuple[Callable[[list[str]], Tensor], float]:
    """open_clip's text tower and exp of its logit scale.

    Args:
        model: open_clip's name, for example ``ViT-B-16-quickgelu`` (OpenAI trained with that nonlinearity).
        weights: open_clip's tag, for example ``openai``, or a file.
        device: where it runs.

    Raises:
        UserError: open_clip is not installed, the name is unknown, or the weights cannot be had.
    """
    try:
        import open_clip
    except ImportError:
        raise UserError("clmerge text needs open_clip: pip install 'clmerge[text]' (or open_clip_torch)") from None
    try:
        clip: Any = open_clip.create_model(model, pretrained=weights, device=device).eval()
        tokens = open_clip.get_tokenizer(model)
    except Exception as error:  # open_clip has no error of its own: a wrong name, no network and a bad file all come so
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"clmerge text: open_clip gives no {model} with weights {weights!r} ({why}); offline, fetch "
            "open_clip_model.safetensors of https://huggingface.co/timm/vit_base_patch16_clip_224.openai elsewhere and "
            "name it: --weights FILE"
        ) from None

    @torch.inference_mode()
    def encode(texts: list[str]) -> Tensor:
        embedded: Tensor = clip.encode_text(tokens(texts).to(device))
        return embedded.cpu()

    return encode, float(clip.logit_scale.detach().exp())


def write_rows(file: Path, rows: Tensor, names: Sequence[str], made_from: str) -> None:
    """The file that ``head.text`` names, atomically."""
    save_plain(file, {"rows": rows.float()}, {"class_names": json.dumps(list(names)), "made_from": made_from})
