"""Class rows of zero-shot heads."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from torch import Tensor

from bench.commands.text import text
from bench.common.errors import UserError
from bench.config.schema import HeadConfig
from bench.model.class_rows import check_rows, read_rows
from bench.model.clip_text import class_rows, open_clip_encoder, templates, write_rows


def encode(texts: list[str]) -> Tensor:
    """(texts, 6): a function of the words, of any length."""
    return torch.stack(
        [torch.randn(6, generator=torch.Generator().manual_seed(sum(map(ord, t)))) * (1 + len(t)) for t in texts]
    )


def test_counts_of_phrases() -> None:
    assert [len(templates(key)) for key in ("cifar100", "cifar10", "cars", "imagenet_r", "mine")] == [18, 18, 8, 80, 80]
    assert templates("cifar10") == templates("cifar100")
    for key in ("cifar100", "cars", "imagenet_r"):
        assert len(set(templates(key))) == len(templates(key))


def test_a_row_is_the_mean_direction_of_its_phrases_times_the_scale() -> None:
    phrases = ["a {}.", "the {}!", "my {}?"]
    rows = class_rows(encode, 100.0, ["oak_tree", "cat"], phrases)
    assert rows.shape == (2, 6)
    assert rows.dtype == torch.float32
    for row, name in zip(rows, ("oak tree", "cat"), strict=True):
        each = encode([p.format(name) for p in phrases])
        mean = (each / each.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(row, 100 * mean / mean.norm())


def test_the_file_is_what_a_head_reads(tmp_path: Path) -> None:
    rows = class_rows(encode, 10.0, ["a", "b", "c"], ["{}"])
    write_rows(tmp_path / "rows.safetensors", rows, ["a", "b", "c"], "test")
    config = HeadConfig(kind="zero_shot", text=str(tmp_path / "rows.safetensors"))
    check_rows(config, 3)
    assert torch.equal(torch.from_numpy(read_rows(config, 3, 6)), rows)
    with safe_open(tmp_path / "rows.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["class_names"]) == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["[1, 2]", "default: [no place]", "default: []", "mine: x: y", "other: ['{}']"])
def test_a_wrong_file_of_phrases_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(UserError, match=r"expected a list of phrases"):
        templates("mine", tmp_path / "t.yaml")


def test_without_open_clip_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    done = CliRunner().invoke(text, ["--dataset", "digits", "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    assert done.exit_code == 2
    assert "pip install 'clmerge[text]'" in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_unknown_names_and_unreachable_weights_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    for model, weights in (("ViT-B-16", "/no/such/file"), ("no-such-model", "openai")):
        with pytest.raises(UserError, match=rf"open_clip gives no {model} with weights '{weights}'"):
            open_clip_encoder(model, weights)


def test_the_command_writes_rows_of_the_datasets_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("bench.model.clip_text.open_clip_encoder", lambda *_: (encode, 100.0))
    out = tmp_path / "rows" / "digits.safetensors"
    done = CliRunner().invoke(text, ["--dataset", "digits", "--data", str(tmp_path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "10 rows, 80 phrases a class" in done.output
    rows = torch.from_numpy(read_rows(HeadConfig(kind="zero_shot", text=str(out)), 10, 6))
    torch.testing.assert_close(rows.norm(dim=1), torch.full((10,), 100.0))
