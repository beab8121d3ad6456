"""What a rule claims, and the numbers that it gives."""

from __future__ import annotations

from typing import Any

import torch

from bench.checks.subject import (
    Failed,
    ServeTrained,
    Skipped,
    Subject,
    distance,
    finite,
    need_rule,
    same_bits,
    same_layout,
)
from bench.checks.world import PROTOCOL, World, merges
from bench.common.errors import UserError
from bench.method.asking import AsksByName, Need
from bench.method.protect import ChangedInPlaceError
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Weights
from bench.run.live_task import LiveTask
from bench.statistics import STATISTICS, statistic


def first_task(subject: Subject) -> str | None:
    """After one task theta*_1 is served, where serves_first is claimed."""
    need_rule(subject)
    if not subject.rule().serves_first:
        raise Skipped("serves_first is not claimed")
    track = subject.track(order=(0,))
    gap = distance(subject.served(track)[0], track.models[0].trained, subject.worlds.lora.backbone.pretrained)
    if not gap < 1e-3:
        raise Failed(f"serves_first is claimed, but theta_hat_1 is {gap:.1e} of ||theta*_1 - theta_0|| off theta*_1")
    return None


def fixed_point(subject: Subject) -> str | None:
    """Equal task models are served as they are, where serves_first is claimed."""
    need_rule(subject)
    if not subject.rule().serves_first:
        raise Skipped("serves_first is not claimed")
    track, theta_0 = subject.equal(), subject.worlds.lora.backbone.pretrained
    for t, served in enumerate(subject.served(track), 1):
        gap = distance(served, track.models[0].trained, theta_0)
        if t > 1 and not gap < 1e-3:
            raise Failed(f"equal task models, but theta_hat_{t} is {gap:.1e} of ||theta* - theta_0|| off theta*")
    return None


def order(subject: Subject) -> str | None:
    """The order of independently trained tasks does not matter, where order_invariant is claimed."""
    need_rule(subject)
    if not subject.rule().order_invariant:
        raise Skipped("order_invariant is not claimed")
    theta_0, places = subject.worlds.lora.backbone.pretrained, (2, 0, 1)
    one = subject.served(subject.track(), start="pretrained")[-1]
    other = subject.served(subject.track(order=places), start="pretrained")[-1]
    gap = distance(other, one, theta_0)
    if not gap < 1e-3:
        raise Failed(f"order_invariant is claimed, but tasks in the order 3, 1, 2 give weights {gap:.1e} away")
    return f"{gap:.0e}"


def streams(subject: Subject) -> str | None:
    """A stream gives what its tasks alone give: no other stream and no later task has a say."""
    need_rule(subject)
    alone = subject.alone()
    worlds, start = subject.worlds, subject.method.start
    pair = [merges(subject.rule(), worlds.lora, subject.track(order=o), start) for o in ((0, 1, 2), (2, 1, 0))]
    together = [one for (_, one), _ in zip(*pair, strict=True)]
    same_bits(alone, together, "another instance at work changes the answer (memory in the class or the module?)")
    shorter = subject.served(subject.track(order=(0, 1)))
    same_bits(alone[:2], shorter, "a third task to come changes the answer")
    return None


class _FlatLoss(AsksByName):
    """A task on which the loss is flat: its statistics and recorded squared gradients are zero."""

    def __init__(self, task: LiveTask) -> None:
        self._task = task
        squares = {k: [w.zeros() for w in ws] for k, ws in task.recorded.items() if k == "grad_sq"}
        self.recorded = task.recorded | squares

    def statistic(self, key: str, **asked: Any) -> Any:
        """Its zero."""
        return statistic(key).zero(self._task.statistic(key, **asked))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def degenerate(subject: Subject) -> str | None:
    """Finite where task vectors or Fishers are zero, and where one tensor was left alone."""
    need_rule(subject)
    track, theta_0 = subject.track(), subject.worlds.lora.backbone.pretrained
    name, start = next(theta_0.items())
    still = track.changed(lambda w: theta_0.detach())
    partly = track.changed(lambda w: w.with_tensors({name: start}))
    finite(subject.served(still), "zero task vectors")
    finite(subject.served(track, wrap=_FlatLoss), "zero Fisher")
    finite(subject.served(still, wrap=_FlatLoss), "zero task vectors and zero Fisher")
    finite(subject.served(partly), f"tensor {name} left alone")
    finite(subject.served(subject.equal()), "equal task models")
    return None


def layout(subject: Subject) -> str | None:
    """Served weights have theta_0's names, shapes, compute dtype and device, and are finite."""
    need_rule(subject)
    same_layout(subject.alone(), subject.worlds.lora.backbone.pretrained, "float32")

    def wide(weights: Weights) -> Weights:
        return weights.map(lambda v: v.double())

    known = []
    worlds, start = subject.worlds, subject.method.start
    for task, _ in merges(ServeTrained(), worlds.lora, subject.track(), start):
        statistics = {}
        for key, kind in [(k, kind) for k in STATISTICS for kind in statistic(k).kinds]:
            value = task.statistic(key, kind=kind, samples=PROTOCOL.fisher_samples)
            for elsewhere in (False, True):
                statistics[str(Need(key, kind, elsewhere))] = statistic(key).cast(value, torch.float64, "cpu")
        kept = {k: [wide(w) for w in ws] for k, ws in task.recorded.items()}
        known.append(Recording(wide(task.trained), statistics, kept))
    theta_0 = wide(worlds.lora.backbone.pretrained)
    try:
        same_layout([t.served for t in merge_stream(subject.rule(), theta_0, known, start)], theta_0, "float64")
    except (UserError, ChangedInPlaceError) as why:  # the latter is told by the check of inputs
        return f"float64 not tried: {why}"
    return None


def device(subject: Subject) -> str | None:
    """The same answer on a GPU, to a thousandth of what was learnt."""
    need_rule(subject)
    if not torch.cuda.is_available():
        raise Skipped("no GPU on this machine")
    return on_device(subject, "cuda")


def on_device(subject: Subject, name: str) -> str:
    """How far the answer there is from the CPU's, where it is near enough."""
    there, theta_0 = World(device=name), subject.worlds.lora.backbone.pretrained
    track = subject.track().to(there)
    served = subject.served(track, there)
    places = {w.vector.device.type for w in served} - {name}
    if places:
        raise Failed(f"what is served lies on {places.pop()}, theta_0 on {name}")
    gap = max(distance(a.to("cpu"), b, theta_0) for a, b in zip(served, subject.alone(), strict=True))
    if not gap < 1e-3:
        raise Failed(f"the answer on {name} is {gap:.1e} of ||theta_hat - theta_0|| away from the CPU's")
    return f"{gap:.0e}"
