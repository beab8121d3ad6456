"""The grammar of methods: taking a spelling apart and writing it are inverses."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.common.errors import UserError
from bench.method import START
from bench.registry.spelling import HEADS, Spelling, parse, spell

NAMES = st.from_regex(r"[A-Za-z0-9_-]+", fullmatch=True)
TEXTS = st.text(st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"], blacklist_characters=",")).map(str.strip)
SPELLINGS = st.builds(
    Spelling,
    name=NAMES,
    trainer=st.none() | NAMES,
    start=st.none() | st.sampled_from(START),
    head=st.none() | st.sampled_from(HEADS),
    options=st.dictionaries(st.from_regex(r"(trainer\.|rule\.)?[a-z_]+", fullmatch=True), TEXTS, max_size=4),
)


@given(SPELLINGS)
def test_what_is_spelled_is_parsed_back(spelling: Spelling) -> None:
    again = parse(spell(spelling))
    assert dataclasses.replace(again, options=dict(again.options)) == spelling


@given(SPELLINGS)
def test_spaces_around_options_say_nothing(spelling: Spelling) -> None:
    pairs = ",".join(f" {name} = {value} " for name, value in spelling.options.items())
    assert parse(f"{spelling.parts}:{pairs}") == parse(spell(spelling))


@pytest.mark.parametrize("text", ["", "a b", "a+b+c", "a@nowhere", "a/nothing", "a:b", "a:\nb=1"])
def test_what_is_no_spelling_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UserError, match=r"^suites/x\.yaml: methods: ") as caught:
        parse(text, "suites/x.yaml: methods")
    assert repr(text) in str(caught.value)
