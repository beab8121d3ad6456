"""A conformance kit for plugin authors: what every rule and trainer keeps to, tried out on a tiny world.

``clmerge check NAME_OR_FILE`` from the shell; from Python::

    from bench.checks import Worlds, check_method
    from bench.registry import Registry

    for finding in check_method(Registry.load().resolve("average"), Worlds()):
        print(finding.outcome, finding.check, finding.reason)

A check is a function whose first docstring line is the promise; what it returns is a note, and what it raises says how
the promise is broken or why it could not be tried.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.checks.access import data, inputs, needs, seed
from bench.checks.rules import degenerate, device, first_task, fixed_point, layout, order, streams
from bench.checks.state import carried, resume
from bench.checks.subject import Failed, Finding, Outcome, ServeTrained, Skipped, Subject
from bench.checks.training import evaluation, full, lora, one_class, one_task, penalty, weights
from bench.checks.world import Worlds, global_seed
from bench.registry.resolved import Method
from bench.run.workbench import threads

__all__ = ["CHECKS", "Finding", "ServeTrained", "Worlds", "check_method"]

CHECKS: tuple[Callable[[Subject], str | None], ...] = (
    first_task, fixed_point, order, streams, carried, resume, degenerate, layout, seed, data, needs, inputs,
    weights, penalty, evaluation, lora, full, one_task, one_class, device,
)  # fmt: skip


def check_method(method: Method, worlds: Worlds, name: str = "") -> Iterator[Finding]:
    """All checks, one after the other; an exception in a plugin is a failure.

    Args:
        method: what is tried.
        worlds: where; pass the same to several calls.
        name: what the findings call it; default: its key.
    """
    subject = Subject(method, worlds)
    for check in CHECKS:
        about = (check.__doc__ or "").strip().splitlines()[0].rstrip(".")
        began, reason = time.perf_counter(), ""
        outcome: Outcome = "pass"
        try:
            with threads(1), global_seed(0), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop")  # of per-sample gradients
                reason = check(subject) or ""
        except Skipped as why:
            outcome, reason = "skip", str(why)
        except Failed as why:
            outcome, reason = "fail", str(why)
        except Exception as error:
            outcome, reason = "fail", _reason(error, subject)
        seconds = time.perf_counter() - began
        yield Finding(name or method.key, method.variant, check.__name__, outcome, reason, about, seconds)
    worlds.mend()


def _reason(error: Exception, subject: Subject) -> str:
    """Type, message, and the last line of the plugin's own file that it went through."""
    plugins = [c for c in (subject.method.trainer, subject.method.rule) if not c.__module__.startswith("bench.")]
    files = {getattr(sys.modules[c.__module__], "__file__", "") for c in plugins}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}{where}"
