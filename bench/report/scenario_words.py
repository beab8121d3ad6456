"""What tables say of each kind of stream. Not with the kinds, whose code is in the hash of every training."""

from __future__ import annotations

from typing import NamedTuple

from bench.common.errors import unknown


class Words(NamedTuple):
    """Of one kind of stream."""

    title: str  #: in the title of every table of it
    note: str  #: below every table of it
    frozen: str  #: why a frozen backbone forgets there


WORDS = {
    "class_incremental": Words("", "", "it forgets because the label space grows"),
    "domain_incremental": Words(
        "domain-incremental",
        "Domain-incremental: every task has all classes, in a domain of its own; one head is trained on from task to "
        "task and its latest form answers. Knowing the task narrows nothing, so task-aware numbers are the plain ones; "
        "only task experts are told the domain.",
        "only its head does, with every domain",
    ),
}


def words_of(scenario: str) -> Words:
    """Of the kind that a record names.

    Raises:
        UserError: this version does not know it.
    """
    if scenario not in WORDS:
        raise unknown("scenario", scenario, WORDS, "coordinates of a record")
    return WORDS[scenario]
