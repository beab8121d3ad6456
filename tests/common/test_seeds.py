"""Random streams have names, and the names are listed in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import numpy as np

from bench.common import seeds
from bench.common.paths import ROOT

STREAMS = {"derive": 0, "numpy_rng": 0, "torch_rng": 0, "_parts": 0}  #: functions by the place of the purpose
#: what stands there in place of a text, and under which name the list has it
COMPUTED = {"protocol.adapter": "the adapter's kind", "protocol.adapter.kind": "the adapter's kind", "purpose": None}


def purposes_in_use() -> Iterator[tuple[str, str]]:
    """Every purpose that the code names, with its file."""
    for path in sorted((ROOT / "bench").rglob("*.py")):
        if path == ROOT / "bench" / "common" / "seeds.py" or "report" in path.parts or "download" in path.parts:
            continue  # their functions of these names are others
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in STREAMS:
                    first = node.args[0]
                    if not isinstance(first, ast.Constant):
                        assert ast.unparse(first) in COMPUTED, (
                            f"{path.name}: say in COMPUTED what {ast.unparse(first)} is"
                        )
                    text = first.value if isinstance(first, ast.Constant) else COMPUTED[ast.unparse(first)]
                    if text is not None:
                        yield str(text), path.name


def test_the_list_of_purposes_is_the_code_s() -> None:
    listed = re.findall(r"^- ``([^`]+)``:", seeds.__doc__ or "", re.MULTILINE)
    in_use = dict(purposes_in_use())
    assert set(listed) == set(in_use), {name: in_use.get(name) for name in set(listed) ^ set(in_use)}
    assert len(listed) == len(set(listed))


def test_a_purpose_names_a_stream_of_its_own() -> None:
    assert seeds.derive("batches", 0, "digits:0,1", 0) == seeds.derive("batches", 0, "digits:0,1", 0)
    assert seeds.derive("batches", 0, "digits:0,1", 0) != seeds.derive("augment", 0, "digits:0,1", 0)
    assert seeds.derive("batches", 0) == 605368600883026117  # a number of every machine and every Python
    same = [seeds.numpy_rng("rule", 1).standard_normal(3) for _ in range(2)]
    assert np.array_equal(*same)
