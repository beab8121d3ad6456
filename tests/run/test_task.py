"""The Task that a rule sees, live and recorded: statistics kept in the store, what is granted, what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.common.cache import Store
from bench.common.errors import UserError
from bench.common.seeds import torch_rng
from bench.config.schema import AugmentConfig, ProtocolConfig
from bench.data.stream import Stream
from bench.data.transforms import Transform
from bench.method import Gram, Rule, Task, Trainer
from bench.method.recorded import RecordedTask, Recording, merge_recorded, merge_stream
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import new_head, training_heads
from bench.run.live_task import LiveTask
from bench.run.train import train
from bench.statistics import fisher as fisher_module
from bench.statistics import gram as gram_module
from bench.statistics.fisher import KINDS, LABELLED
from tests.helpers.toy import Models, close, noise, rule

GRANTED = {"none": [], "unlabelled": ["images"], "labelled": ["images", "labels"], "oracle": ["images", "labels"]}


@pytest.fixture
def task(stream: Stream, backbone: Backbone, protocol: ProtocolConfig, tmp_path: Path) -> LiveTask:
    """The second of two, at weights that were moved rather than trained."""
    few = protocol.model_copy(update={"fisher_samples": 24})
    theta_0 = backbone.pretrained
    moved = theta_0.map(lambda v: v + 0.02 * torch.randn(v.shape, generator=torch.Generator().manual_seed(0)))
    heads = [new_head(5, backbone.dim, 0.1, "cpu", i) for i in range(2)]
    return LiveTask("labelled", stream, stream.tasks[1], backbone, few, heads, 3, Store(tmp_path),
                    theta_0, theta_0, theta_0, moved, {})  # fmt: skip


class Calls:
    """Counts the passes over images that an estimator makes, and keeps what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        self.given: list[tuple[Any, ...]] = []
        estimate = getattr(module, name)

        def spy(*arguments: Any) -> Any:
            self.given.append(arguments)
            return estimate(*arguments)

        monkeypatch.setattr(module, name, spy)

    def __len__(self) -> int:
        return len(self.given)


# ---- live: Gram matrices -------------------------------------------------------------------------------------------
def bits(grams: dict[str, Gram]) -> dict[str, tuple[int, str]]:
    return {name: (g.rows, Weights.of({"g": g.sum}).digest()) for name, g in grams.items()}


def test_a_tasks_gram_is_of_its_own_images_at_theta_star_and_kept(
    task: LiveTask, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch, gram_module, "gram")
    first = task.gram(20)
    [(_, at, x)] = calls.given
    assert at is task.trained
    images = [bytes(image.numpy()) for image in x]
    assert len(images) == 20
    own = {bytes(image.numpy()) for image in stream.train_images[task.current.train]}
    assert set(images) <= own
    assert first.keys() == set(task.trained.layout.names)
    assert all(g.rows == 20 * 16 and g.sum.dtype == torch.float64 for g in first.values())
    again = task.gram(20)
    assert len(calls) == 1  # from the store
    assert bits(again) == bits(first)
    task.store = Store(task.store.root, enabled=False)
    assert bits(task.gram(20)) == bits(first)
    assert len(calls) == 2


def test_a_kept_gram_is_of_these_weights_this_task_and_this_many_images(
    task: LiveTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, told = Calls(monkeypatch, gram_module, "gram"), list[dict[str, tuple[int, str]]]()
    for other in (
        task,
        replace(task, trained=task.pretrained),
        replace(task, run_seed=4),
        replace(task, current=task.stream.tasks[0]),
    ):
        told.append(bits(other.gram(20)))
    told.append(bits(task.gram(21)))
    assert len(calls) == 5
    name = "blocks.1.attn.qkv.k.weight"
    assert len({t[name] for t in told}) == 5
    everything = task.gram(10**6)
    assert everything[name].rows == 16 * len(task.current.train)
    moved_heads = replace(task, heads=task.heads[::-1])
    assert bits(moved_heads.gram(20)) == told[0]  # heads have nothing to do with it
    assert len(calls) == 6


def test_gram_needs_images_and_no_labels(task: LiveTask) -> None:
    for data, granted in GRANTED.items():
        asked = replace(task, data=data)
        if "images" in granted:
            assert asked.gram(5)
        else:
            with pytest.raises(PermissionError, match="declares data='none' may not read images of the current task"):
                asked.gram(5)


def test_what_statistics_cost_is_told_whether_or_not_they_were_kept(task: LiveTask) -> None:
    task.gram(200)
    task.fisher("exact")
    alone = dict(task.seconds)
    assert 0 < alone["statistics"] <= alone["spent"]
    later = replace(task, seconds={"statistics": 0.0, "spent": 0.0})
    later.gram(200)
    later.fisher("exact")
    assert later.seconds["statistics"] == pytest.approx(alone["statistics"])
    assert later.seconds["spent"] < alone["spent"]


# ---- live: kinds of Fisher -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("data", GRANTED)
def test_kinds_of_fisher_need_labels_only_where_they_read_them(task: LiveTask, kind: str, data: str) -> None:
    what, asked = "labels" if kind in LABELLED else "images", replace(task, data=data)
    if what in GRANTED[data]:
        assert float(asked.fisher(kind).sum()) > 0
    else:
        with pytest.raises(PermissionError, match=f"declares data='{data}' may not read {what}"):
            asked.fisher(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_fisher_knows_its_batch_where_that_matters(
    task: LiveTask, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = kind == fisher_module.SEEN
    calls = Calls(monkeypatch, fisher_module, "_of_training_views" if seen else "diagonal_fisher")
    first = task.fisher(kind)
    assert task.fisher(kind).digest() == first.digest()
    assert len(calls) == 1
    train = task.protocol.train.model_copy(update={"batch": 7})
    other = replace(task, protocol=task.protocol.model_copy(update={"train": train}))
    same = other.fisher(kind).digest() == first.digest()
    assert same == (kind in ("empirical", "exact"))
    assert len(calls) == (1 if same else 2)
    assert seen or calls.given[-1][-1] == (64 if same else 7)


def test_the_fisher_of_all_heads_seen_is_its_loop_over_training_views(task: LiveTask) -> None:
    """Every image once, all heads' columns in one softmax, squares of the batches' mean gradients."""
    stream, backbone, train = task.stream, task.backbone, task.protocol.train
    index = task.current.train
    order = torch.randperm(len(index), generator=torch_rng("fisher", task.run_seed, task.current.content))
    batches, total = index[order].split(train.batch), task.trained.zeros().vector.double()
    assert len(batches[-1]) < train.batch  # it counts as much as a full one
    for batch in batches:
        point = task.trained.map(lambda v: v.detach().clone().requires_grad_())
        features = backbone.features(point, stream.train_images[batch])  # this protocol shows the test view in training
        logits = torch.cat([features @ head.weight.T + head.bias for head in task.heads], dim=1) / train.temperature
        losses = torch.logsumexp(logits, 1) - logits[torch.arange(len(batch)), stream.train_columns[batch]]
        total += torch.autograd.grad(losses.mean(), point.vector)[0].double().square()
    got = task.fisher("batchmean_seen")
    assert (got.vector - total / len(batches)).norm() < 1e-5 * got.norm()


def test_the_fisher_of_all_heads_seen_knows_the_heads_and_the_views_and_the_others_the_own_head_alone(
    task: LiveTask,
) -> None:
    other = replace(task, heads=[new_head(5, task.backbone.dim, 0.1, "cpu", 7), task.heads[-1]])
    assert other.fisher("batchmean").digest() == task.fisher("batchmean").digest()
    assert other.fisher("batchmean_seen").digest() != task.fisher("batchmean_seen").digest()
    flipped = AugmentConfig(flip=True)
    protocol = task.protocol.model_copy(update={"augment": flipped})
    backbone = copy(task.backbone)
    backbone.transform = Transform(backbone.transform.image, flipped)
    views = replace(task, protocol=protocol, backbone=backbone)
    assert views.fisher("batchmean").digest() == task.fisher("batchmean").digest()
    assert views.fisher("batchmean_seen").digest() != task.fisher("batchmean_seen").digest()


def test_an_unknown_kind_is_an_error_and_nothing_is_kept(task: LiveTask) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="unknown fisher kind 'hessian'"):
            task.fisher("hessian")


def test_a_plugin_that_writes_into_a_statistic_spoils_it_for_nobody_else(task: LiveTask) -> None:
    for ask in (lambda t: t.fisher().vector, lambda t: next(iter(t.gram(20).values())).sum):
        for enabled in (True, False):
            task.store = Store(task.store.root, enabled=enabled)
            before = ask(task).clone()
            ask(task).data.zero_()
            assert torch.equal(ask(task), before)


# ---- live: heads ---------------------------------------------------------------------------------------------------
def test_the_head_of_any_task_seen_by_its_number(task: LiveTask, stream: Stream) -> None:
    x = stream.train_images[:6]
    seen = task.logits(task.trained, x, "seen")
    for number, columns in ((1, slice(0, 5)), (2, slice(5, 10))):
        torch.testing.assert_close(task.logits(task.trained, x, number), seen[:, columns], rtol=0, atol=1e-6)
    assert torch.equal(task.logits(task.trained, x, 2), task.logits(task.trained, x, "current"))
    with pytest.raises(IndexError):
        task.logits(task.trained, x, 3)


@pytest.mark.parametrize("temperature", [1.0, 30.0])
@pytest.mark.parametrize("heads", ["current", "old", "seen", "fresh", 1])
def test_logits_of_every_head_are_divided_by_the_training_temperature(
    task: LiveTask, stream: Stream, heads: str | int, temperature: float
) -> None:
    x, trained = stream.train_images[:6], task.protocol.train.model_copy(update={"temperature": temperature})
    task.protocol = task.protocol.model_copy(update={"train": trained})
    fresh = new_head(5, task.backbone.dim, task.protocol.head.init_std, "cpu", "fresh", 3, task.current.content)
    answering = {
        "current": task.heads[1:],
        "old": task.heads[:1],
        "seen": task.heads,
        "fresh": [fresh],
        1: task.heads[:1],
    }
    features = task.backbone.features(task.trained, x)
    raw = torch.cat([head(features) for head in answering[heads]], dim=1)
    exact = temperature == 1 and heads != "seen"  # two heads side by side are another product of matrices
    torch.testing.assert_close(
        task.logits(task.trained, x, heads), raw / temperature, rtol=0, atol=0 if exact else 1e-6
    )


def test_the_loss_of_a_tasks_logits_is_the_training_loss(
    stream: Stream, backbone: Backbone, protocol: ProtocolConfig, task: LiveTask
) -> None:
    hot = protocol.train.model_copy(update={"temperature": 4.0, "epochs": 1, "batch": len(stream.tasks[1].train)})
    task.protocol = protocol.model_copy(update={"train": hot})
    head = training_heads(protocol.head, [stream.tasks[1]], backbone.dim, "cpu", 3)
    learnt = train(backbone, stream, [stream.tasks[1]], Trainer(), backbone.pretrained, task.protocol, 3)
    task.heads = [task.heads[0], head]
    index = stream.tasks[1].train
    columns = stream.train_columns[index] - stream.tasks[1].columns.start
    loss = cross_entropy(task.logits(task.pretrained, stream.train_images[index]), columns)
    assert float(loss) == pytest.approx(learnt.onset["loss"]["0"], rel=1e-5)


# ---- recorded: what is there and what is not -----------------------------------------------------------------------
def recorded(**known: Any) -> RecordedTask:
    return RecordedTask(2, *(noise(i) for i in range(4)), **known)


def test_a_recorded_task_gives_what_it_was_given() -> None:
    F, G, elsewhere = noise(5), Gram(torch.eye(5), 7), noise(6)
    task = recorded(statistics={"fisher:exact": F, "fisher:exact@elsewhere": elsewhere, "gram": {"a": G}},
                    recorded={"grad_sq": [F]})  # fmt: skip
    assert task.fisher("exact") is F
    assert task.fisher("exact", at=task.served) is elsewhere
    assert task.gram(64) == {"a": G}
    assert task.recorded["grad_sq"] == [F]


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda t: t.fisher(), r"task 2: the rule needs fisher:empirical; give it"),
        (lambda t: t.fisher("exact"), "needs fisher:exact; give it"),
        (lambda t: t.fisher("sqrtp_batch", at=t.served), "needs fisher:sqrtp_batch at other weights"),
        (lambda t: t.gram(64), "task 2: the rule needs gram; give it"),
        (lambda t: t.recorded["grad_sq"], r"task 2: the rule needs a by-product of training \(grad_sq\)"),
        (lambda t: t.batches(4, 1), "task 2: the rule reads images, which recorded weights do not have"),
        (lambda t: t.logits(t.trained, torch.zeros(1)), "reads images"),
        (lambda t: t.accuracy(t.trained), "reads images"),
    ],
)
def test_what_a_recorded_task_lacks_is_the_users_to_give(ask: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        ask(recorded(statistics={"fisher:mammoth": noise(5)}))


def test_a_recorded_tasks_random_streams_are_of_seed_task_and_purpose() -> None:
    def draw(task: RecordedTask, purpose: str = "mask") -> int:
        return int(task.rng(purpose).integers(2**60))

    task = recorded()
    draws = [draw(task), draw(task, "noise"), draw(replace(task, t=3)), draw(replace(task, seed=1))]
    assert len(set(draws)) == 4
    assert draw(recorded()) == draws[0]


# ---- recorded streams ----------------------------------------------------------------------------------------------
class Look(Rule):
    """Serves half-way between served and trained, and keeps what it saw."""

    def begin(self, pretrained: Weights) -> None:
        super().begin(pretrained)
        self.seen: list[Any] = []

    def merge(self, task: Task) -> Weights:
        self.seen.append(task)
        self.before = [*getattr(self, "before", []), task.served]
        return (task.served + task.trained) / 2


@pytest.mark.parametrize("start", ["pretrained", "previous", "merged"])
def test_a_stream_is_merged_from_where_each_training_began(start: Any) -> None:
    models, look = Models.draw(0, T=3), Look()
    elsewhere = noise(99)
    known = [Recording(w) for w in models.thetas]
    known[2].start = elsewhere
    out = [t.served for t in merge_stream(look, models.theta_0, known, start, seed=5)]
    assert [t.t for t in look.seen] == [1, 2, 3]
    assert all(t.pretrained is models.theta_0 and t.seed == 5 for t in look.seen)
    assert [t.trained for t in look.seen] == models.thetas
    second = {"pretrained": models.theta_0, "previous": models.thetas[0], "merged": out[0]}[start]
    assert look.seen[0].start is models.theta_0
    assert look.seen[1].start is second
    assert look.seen[2].start is elsewhere
    assert [w.digest() for w in look.before] == [w.digest() for w in (models.theta_0, *out[:2])]


def test_a_streams_tasks_are_taken_one_at_a_time() -> None:
    """So that files are opened as they are needed, and only what the rule carries stays in memory."""
    models, taken = Models.draw(0, T=3), list[int]()

    def tasks() -> Iterator[Recording]:
        for i, w in enumerate(models.thetas, 1):
            taken.append(i)
            yield Recording(w)

    stream = merge_stream(rule("average"), models.theta_0, tasks())
    assert taken == []
    for i, task in enumerate(stream, 1):
        assert taken == list(range(1, i + 1))
        assert task.t == i


def test_a_streams_statistics_reach_the_rule() -> None:
    models = Models.draw(1, T=3)
    known = [Recording(w, {"fisher:empirical": F}) for w, F in zip(models.thetas, models.fishers, strict=True)]
    told = [task.scalars for task in merge_stream(rule("pm_alpha"), models.theta_0, known)]
    scalars = list[dict[str, float]]()
    merge_recorded(rule("pm_alpha"), models.theta_0, models.thetas, models.fishers, scalars)
    assert told == scalars
    assert told[0]["alpha"] == 1
    with pytest.raises(UserError, match=r"task 2: the rule needs fisher:empirical"):
        list(merge_stream(rule("pm_alpha"), models.theta_0, [known[0], Recording(models.thetas[1])]))
    with pytest.raises(UserError, match=r"task 2: the rule needs a by-product of training \(snapshots\)"):
        list(merge_stream(rule("trm"), models.theta_0, [Recording(w) for w in models.thetas]))


def test_a_rule_begins_anew_with_each_stream() -> None:
    models, average = Models.draw(2), rule("average")
    first, second = (merge_recorded(average, models.theta_0, models.thetas)[-1] for _ in range(2))
    assert first.digest() == second.digest()
    assert close(first, sum(models.thetas[1:], models.thetas[0]) / 4)


def test_weights_that_are_not_finite_are_an_error_that_names_rule_and_task() -> None:
    models = Models.draw(3)

    def spoil(vector: Tensor) -> Tensor:
        return torch.cat([vector[:-1], torch.tensor([torch.inf])])

    spoilt = [models.thetas[0], models.thetas[1].map(spoil)]
    with pytest.raises(FloatingPointError, match="rule average served non-finite weights after task 2"):
        merge_recorded(rule("average"), models.theta_0, spoilt)
