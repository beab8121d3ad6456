"""A name that is nearly right is answered by what is near it, and by nothing that is so by chance."""

import pytest

from bench.common.errors import unknown

KNOWN = ["er", "joint", "perturb", "pm"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("pertub", "did you mean 'perturb'?"),  # and not also er, which is in it
        ("pn", "did you mean 'pm'?"),  # half of two letters is all that is known
        ("zzz", "known: er, joint, perturb, pm"),
    ],
)
def test_near_names(name: str, hint: str) -> None:
    assert str(unknown("trainer", name, KNOWN)) == f"unknown trainer {name!r}; {hint}"
