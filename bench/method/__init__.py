"""What a plugin author imports; :mod:`bench.method.api` says what each name is. Torch-free."""

from bench.method.api import (
    START,
    Gram,
    NamedMethod,
    Plugin,
    Rule,
    Start,
    Task,
    TaskVectorRule,
    Trainer,
    Weights,
    method,
    option,
    rule,
    state,
    take_declared,
    trainer,
)

__all__ = [
    "START",
    "Gram",
    "NamedMethod",
    "Plugin",
    "Rule",
    "Start",
    "Task",
    "TaskVectorRule",
    "Trainer",
    "Weights",
    "method",
    "option",
    "rule",
    "state",
    "take_declared",
    "trainer",
]
