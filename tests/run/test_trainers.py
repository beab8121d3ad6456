"""Trainers that read more than the batch: from cell to record, their keys, and what they may not read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from bench.common.errors import UserError
from bench.common.seeds import derive
from bench.config.schema import ProtocolConfig, SuiteConfig
from bench.data.stream import Stream
from bench.method import Step, Trainer
from bench.model.backbone import Backbone
from bench.model.heads import Head, new_head
from bench.registry import Registry
from bench.run.cell import run_cell
from bench.run.live_task import LiveTask, directions
from bench.run.train import _batches, train
from tests.run.test_cell import Stop, bench, cells, numbers


@pytest.mark.parametrize("method", ["lwf", "lwf_average", "er", "er_average", "derpp", "inflora"])
def test_a_cell_that_was_interrupted_or_cached_has_the_same_numbers(tmp_path: Path, method: str) -> None:
    (cell,) = cells(method)

    def stop(beat: dict) -> None:
        if (beat["phase"], beat["task"]) == ("merging", 3):
            raise Stop

    whole = numbers(run_cell(cell, bench(tmp_path / "whole", cache=False)))
    with pytest.raises(Stop):
        run_cell(cell, bench(tmp_path / "broken", cache=False), progress=stop)
    assert numbers(run_cell(cell, bench(tmp_path / "broken", cache=False))) == whole
    for _ in range(2):  # cold, then warm
        assert numbers(run_cell(cell, bench(tmp_path / "cached"))) == whole
        (tmp_path / "cached" / "runs" / cell.id / "cell.json").unlink()


def test_without_their_term_they_are_plain_training(tmp_path: Path) -> None:
    table = {
        cell.method.variant: numbers(run_cell(cell, bench(tmp_path)))
        for cell in cells("finetune", "lwf:alpha=0", "lwf", "average@merged", "lwf+average@merged:alpha=0")
    }
    assert table["lwf+last@previous:alpha=0"] == table["plain+last@previous"] != table["lwf+last@previous"]
    assert table["lwf+average@merged:alpha=0"] == table["plain+average@merged"]


def test_two_rules_share_a_teachers_trainings_only_as_long_as_they_served_the_same() -> None:
    """At start pretrained plain trainings are everybody's; with a teacher from the second task on a rule's own."""
    keys = {
        cell.method.variant: cell.train_keys
        for cell in cells("plain+average@pretrained", "plain+last@pretrained", "lwf+average@pretrained",
                          "lwf+last@pretrained", "lwf+last@previous")
    }  # fmt: skip
    assert keys["plain+average@pretrained"] == keys["plain+last@pretrained"]
    one, other = keys["lwf+average@pretrained"], keys["lwf+last@pretrained"]
    assert one[1] == other[1] == keys["lwf+last@previous"][1]
    assert one[2] != other[2]
    assert one[3] != other[3]


def test_who_has_the_wrong_teachings_in_the_cache_does_not_find_them(tmp_path: Path) -> None:
    """Two rules one after the other on one cache, and each alone: the same numbers."""
    asked = cells("lwf+average@pretrained", "lwf+last@pretrained")
    shared = [numbers(run_cell(cell, bench(tmp_path / "shared"))) for cell in asked]
    alone = [numbers(run_cell(cell, bench(tmp_path / cell.id, cache=False))) for cell in asked]
    assert shared == alone
    assert shared[0] != shared[1]


class Curious(Trainer):
    """Reads what was served without saying so."""

    def loss(self, step: Step) -> float:
        return step.served.norm()


class OldHeads(Trainer):
    """Asks for heads that are not there."""

    def loss(self, step: Step) -> float:
        return float(step.logits(step.weights, step.pixels, "old").sum())


@pytest.mark.parametrize(
    ("trainer", "error", "said"),
    [(Curious, PermissionError, "reads_served"), (OldHeads, ValueError, "no old heads at task 1")],
)
def test_what_a_step_does_not_have_is_refused(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig, trainer: type[Trainer],
    error: type[Exception], said: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=said):
        train(
            backbone, stream, stream.tasks[:1], trainer(), backbone.pretrained, protocol, 0, served=backbone.pretrained
        )


# ---- buffers and old heads -------------------------------------------------------------------------------------------
def test_a_replay_buffer_is_counted_and_shown_as_images(tmp_path: Path) -> None:
    (er,), (derpp,), (average,) = (cells(name) for name in ("er:keep=30", "derpp:keep=30", "er_average:keep=30"))
    one, other, merged = (run_cell(cell, bench(tmp_path)) for cell in (er, derpp, average))
    assert one["method"]["data"]["keeps_images"]
    assert other["method"]["data"]["keeps_images"]
    images, columns = 30 * 16 * 16, 30 * 8  # bytes
    assert one["totals"]["carried_image_bytes"] == other["totals"]["carried_image_bytes"] == images
    assert one["totals"]["carried_bytes"] == merged["totals"]["carried_bytes"] == images + columns
    assert other["totals"]["carried_bytes"] == images + columns + 4 * 30 * 10  # logits of all ten classes


def test_replay_forgets_less_than_going_on_without(tmp_path: Path) -> None:
    table = {
        cell.method.key: run_cell(cell, bench(tmp_path))
        for cell in cells("finetune", "er", "derpp", **{"train.epochs": 3})
    }
    right = {key: sum(hits for hits, _ in record["counts"][-1]) for key, record in table.items()}
    assert right["er"] > right["finetune"] + 20
    assert right["derpp"] > right["finetune"] + 20


def test_infloras_second_task_leaves_the_inputs_of_the_first_alone(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig, tmp_path: Path
) -> None:
    """What task 2 adds to a layer maps the span that was remembered of task 1 to zero; LoRA's own A does not."""
    store = bench(tmp_path).store
    inflora = Registry.load().trainers["inflora"](threshold=0.9)
    inflora.begin(backbone.pretrained)
    at, heads = backbone.pretrained, list[Head]()
    kept: dict[str, torch.Tensor] = {}
    for task in stream.tasks:
        chosen = directions(inflora, backbone, stream, task, protocol, heads, 0, store, at, at)
        assert set(chosen) == set(at.layout.names)
        learnt = train(backbone, stream, [task], inflora, at, protocol, 0, directions=chosen)
        heads = [*heads, *learnt.heads]
        for name, change in (learnt.weights - at).items() if kept else ():
            assert float(change.norm()) > 0
            assert float((change.double() @ kept[name]).norm()) < 1e-4 * float(change.norm())
        seen = LiveTask("labelled", stream, task, backbone, protocol, heads, 0, store, backbone.pretrained, at, at,
                        learnt.weights, {})  # fmt: skip
        inflora.learnt(seen)
        kept, at = {n: M.clone() for n, M in inflora.M.items()}, learnt.weights  # type: ignore[attr-defined]


class Widened(Trainer):
    """Nothing but old heads that are trained on."""

    heads = "seen"


def test_old_heads_that_are_trained_on_are_in_one_softmax_with_the_new_one(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig
) -> None:
    """The second task's steps written out, both heads as one weight matrix of ten rows."""
    first, task = stream.tasks
    config = protocol.train
    old = new_head(5, backbone.dim, 0.1, "cpu", 5, "old")
    fresh = new_head(5, backbone.dim, protocol.head.init_std, "cpu", 0, task.content)
    lora = backbone.adapter(backbone.pretrained, "AB", derive("lora", 0, task.content))
    weight = torch.cat([old.weight, fresh.weight]).requires_grad_()
    bias = torch.cat([old.bias, fresh.bias]).requires_grad_()
    optimiser = torch.optim.AdamW([{"params": [weight, bias], "lr": config.head_lr},
                                   {"params": lora.parameters, "lr": config.lr}], weight_decay=0)  # fmt: skip
    batches = list(_batches(task.train, config, 0, task.content))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(batches))
    for batch in batches:
        features = backbone.features(lora.weights(), stream.train_images[batch])
        optimiser.zero_grad()
        cross_entropy(features @ weight.T + bias, stream.train_columns[batch]).backward()
        optimiser.step()
        cosine.step()
    learnt = train(backbone, stream, [task], Widened(), backbone.pretrained, protocol, 0, earlier=[old])
    assert [len(head.weight) for head in learnt.heads] == [len(first.columns), len(task.columns)]
    torch.testing.assert_close(torch.cat([h.weight for h in learnt.heads]), weight.detach(), rtol=0, atol=1e-3)
    assert float((learnt.heads[0].weight - old.weight).abs().max()) > 0.01
    plain = train(backbone, stream, [task], Trainer(), backbone.pretrained, protocol, 0, earlier=[old])
    assert [head.digest() == old.digest() for head in plain.heads] == [False]


def test_a_training_that_goes_on_with_old_heads_is_named_after_them() -> None:
    """At start pretrained plain trainings know nothing of the tasks before; these do."""
    one, other = (
        {c.method.trainer.key: c.train_keys for c in cells("plain+last@pretrained", "er+last@pretrained", seeds=seed)}
        for seed in ("1", "2")
    )
    assert one["er"][1] != one["plain"][1]
    assert set(one["er"].values()).isdisjoint(other["er"].values())
    more, fewer = (cells(f"er+last@pretrained:keep={n}")[0].train_keys for n in (10, 20))
    assert set(more.values()).isdisjoint(fewer.values())


def test_weights_of_a_method_that_trains_old_heads_on_are_not_kept(tmp_path: Path) -> None:
    from bench.session import Session

    suite = SuiteConfig(key="t", protocol="embedded", datasets=["digits"], tasks=[2], methods=["er"], seeds="1")
    with pytest.raises(UserError, match="--keep-weights: 'er' trains the heads of earlier tasks on"):
        _ = Session(suite, keep_weights=True).grid


def test_er_aces_current_batch_sees_its_own_classes_alone(
    backbone: Backbone, stream: Stream, protocol: ProtocolConfig
) -> None:
    """Before a buffer is there, old heads stay as they were, and the rest is plain training."""
    task, old = stream.tasks[1], new_head(5, backbone.dim, 0.1, "cpu", 5, "old")
    ace = Registry.load().trainers["er_ace"]()
    ace.begin(backbone.pretrained)
    kept, plain = (
        train(backbone, stream, [task], who, backbone.pretrained, protocol, 0, earlier=[old])
        for who in (ace, Trainer())
    )
    assert kept.heads[0].digest() == old.digest()
    torch.testing.assert_close(kept.heads[1].weight, plain.heads[0].weight, rtol=0, atol=1e-4)
