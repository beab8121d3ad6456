"""Families of timm models through the harness, as docs/backbones.md has them."""

from __future__ import annotations

import os

import pytest
import timm

from benchmarks.backbones import walk

FEW = ("beit", "convnext", "efficientnet", "resnet")
ASKED = pytest.mark.skipif(
    not os.environ.get("CLMERGE_ALL_BACKBONES"), reason="all families take long; CLMERGE_ALL_BACKBONES=1 asks for them"
)
OTHERS = [family for family in timm.list_modules() if family not in FEW]


@pytest.mark.run
@pytest.mark.parametrize("family", FEW)
def test_a_family_is_trained_merged_exported_and_replayed(family: str) -> None:
    assert walk(family).works == {"lora": "", "full": ""}


@ASKED
@pytest.mark.run
@pytest.mark.parametrize("family", OTHERS)
def test_every_other_family_works_or_is_refused_before_training(family: str) -> None:
    assert not [line for line in walk(family).works.values() if "FAILED" in line]
