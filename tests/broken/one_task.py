"""Broken on purpose: looks at the second task of the stream, which is not always there (and never to be seen)."""

from typing import Any

from bench.method import Trainer, state, trainer


@trainer("broken_one_task")
class Ahead(Trainer):
    """Plain training that plans for the next task's size."""

    room: int = state(0)

    def learnt(self, task: Any) -> None:
        """Reach behind the interface."""
        self.room = len(task.stream.tasks[1].train)
