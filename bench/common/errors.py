"""What goes wrong by a user's hand: one line that says what, where and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A wrong request. The command line prints the one line and exits with 2; ``--debug`` shows the traceback."""


class Interrupted(Exception):
    """Ctrl-C, SIGTERM or SIGHUP came, and all our processes are gone. What is finished is kept.

    Attributes:
        finished, total: cells of this call.
    """

    def __init__(self, finished: int, total: int) -> None:
        super().__init__(f"interrupted with {finished} of {total} runs finished")
        self.finished, self.total = finished, total


def unknown(what: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """A ``UserError`` for a name that is not known, with the nearest names that are.

    Args:
        what: the kind of thing, for example ``"method"``.
        name: what the user wrote.
        known: all the names that would have been right.
        where: file and key, or the option, in which it stood.
    """
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if near:  # beside a name that is nearly the same, one that shares two letters is chance
        best = difflib.SequenceMatcher(None, near[0], name).ratio()
        near = difflib.get_close_matches(name, near, n=3, cutoff=0.6 * best)
    if near:
        hint = "did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif len(options) <= 12:
        hint = "known: " + ", ".join(options)
    else:
        hint = "known: " + ", ".join(options[:12]) + ", ..."
    return UserError(f"{where + ': ' if where else ''}unknown {what} {name!r}; {hint}")
