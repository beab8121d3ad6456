"""Every file with a published method says what its published numbers were measured with."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.helpers.toy import REGISTRY

FILES = sorted(
    {REGISTRY.sources["method", key] for key, named in REGISTRY.methods.items() if named.status == "published"}
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: Path(file).name)
def test_a_file_with_a_published_method_says_which_heads_its_published_numbers_had(file: str) -> None:
    docstring = ast.get_docstring(ast.parse(Path(file).read_text(encoding="utf-8"))) or ""
    said = re.search(r"^Published numbers: (.*?)(\n\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    assert said, f"{Path(file).name}: no line of its docstring begins with 'Published numbers:'"
    assert re.search(r"\bheads?\b|not known to us", said[1]), said[1]
