"""The shipped methods against reference numbers, identities, and their own definitions written out naively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from bench.common.cache import Store
from bench.common.errors import UserError
from bench.config.schema import ProtocolConfig
from bench.data.stream import Stream
from bench.method import Rule, Trainer
from bench.method.carried import nbytes
from bench.method.recorded import RecordedTask, merge_recorded
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.run.live_task import LiveTask
from bench.run.train import Learnt, train
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, reloaded, rule, seeds, trainer

TRM = REGISTRY.rules["trm"]
Record = Callable[[str, object], None]


# ---- reference numbers ---------------------------------------------------------------------------------------------
def test_golden_average(golden: Callable[[str], Golden]) -> None:
    g = golden("average")
    thetas = g.parts("theta")
    for theta_0 in (thetas[0].zeros(), thetas[1]):  # the mean does not depend on it
        steps = merge_recorded(rule("average"), theta_0, thetas)
        for t, served in enumerate(steps):
            g.check(served, g.part(f"out/step/{t}/theta"))
        g.check(steps[-1], g.part("out/theta"))


def test_golden_task_arithmetic(golden: Callable[[str], Golden]) -> None:
    g = golden("task_arithmetic")
    theta_0 = g.part("theta0")
    steps = merge_recorded(rule("task_arithmetic", lam=g.meta["hparams"]["lam"]), theta_0,
                           [theta_0 + tau for tau in g.parts("tau")])  # fmt: skip
    g.check(steps[-1], g.part("out/theta"))


@pytest.mark.parametrize("name", ["pm", "pm_out_of_range", "pm_out_of_range_clamped"])
def test_golden_pm(golden: Callable[[str], Golden], name: str) -> None:
    g, told = golden(name), list[dict[str, float]]()
    alpha = rule("pm_alpha", clamp=g.meta["hparams"]["clamp"])
    steps = merge_recorded(alpha, g.part("theta0"), g.parts("theta"), g.parts("fisher"), told)
    for t, served in enumerate(steps):
        g.check(served, g.part(f"out/step/{t}/theta"))
    for scalar in ("alpha_raw", "alpha"):
        g.check([row[scalar] for row in told], g.array(f"out/{scalar}"))
    if name != "pm":
        assert not 0 <= told[2]["alpha_raw"] <= 1
        assert (0 <= told[2]["alpha"] <= 1) == g.meta["hparams"]["clamp"]


def test_golden_became_is_pm_at_the_second_task(golden: Callable[[str], Golden]) -> None:
    g = golden("became")
    before = g.part("fisher_first")
    for i in (1, 2):
        old, new, told = g.part(f"theta_gp/{i}"), g.part(f"theta_hat/{i}"), list[dict[str, float]]()
        fishers = [before, g.part(f"fisher_hat/{i}")]
        served = merge_recorded(rule("pm_alpha"), old.zeros(), [old, new], fishers, told)[1]
        g.check(served, g.part(f"out/step/{i}/theta"))
        g.check(told[1]["alpha_raw"], g.array("out/lam")[i - 1])
        before = g.part(f"out/step/{i}/fisher_old")


def test_golden_fisher_merging_is_the_free_minimum_of_pms_sums(golden: Callable[[str], Golden]) -> None:
    g = golden("fisher_merging_plain")
    thetas, alpha = g.parts("theta"), REGISTRY.rules["pm_alpha"]()
    theta_0 = thetas[0] * 0.5
    merge_recorded(alpha, theta_0, thetas, g.parts("fisher"))
    g.check(theta_0 + alpha.m / alpha.S, g.part("out/theta"))  # type: ignore[attr-defined]


def test_golden_files_are_all_read_by_some_test() -> None:
    tests = "".join(file.read_text() for file in Path(__file__).parent.parent.rglob("test_*.py"))
    files = {file.stem for file in (Path(__file__).parent.parent / "goldens").glob("*.npz")}
    assert files
    assert {name for name in files if f'"{name}"' not in tests} == set()


def test_a_fisher_that_is_not_there_is_named() -> None:
    models = Models.draw(0)
    with pytest.raises(UserError, match=r"task 1: the rule needs fisher:empirical"):
        merge_recorded(rule("pm_alpha"), models.theta_0, models.thetas)
    with pytest.raises(UserError, match="reads images"):
        RecordedTask(2, *[models.theta_0] * 4).batches(1, 1)


# ---- what every rule keeps to --------------------------------------------------------------------------------------
def quick(key: str) -> Rule:
    """Few steps where a rule takes steps."""
    options = {"steps": 3} if "steps" in REGISTRY.rules[key].options() else {}
    return rule(key, **options)


every_rule = pytest.mark.parametrize("key", sorted(REGISTRY.rules))


@every_rule
def test_rules_change_none_of_their_inputs_and_repeat_bit_for_bit(key: str) -> None:
    models = Models.draw(0)
    task = models.task(3, models.thetas[1], models.thetas[0])

    def inputs() -> list[str]:
        held = [models.theta_0, *models.thetas, *models.fishers, task.start, task.served, *task.recorded["snapshots"]]
        return [w.digest() for w in held]

    before, out = inputs(), []
    for _ in range(2):
        fresh = quick(key)
        fresh.begin(models.theta_0)
        out.append(fresh.merge(task).digest())
    assert inputs() == before
    assert out[0] == out[1]
    assert [w.digest() for w in chain(quick(key), models)] == [w.digest() for w in chain(quick(key), models)]


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_served_weights_have_names_shapes_and_dtypes_of_theta_0(key: str, dtype: torch.dtype) -> None:
    models = Models.draw(0, dtype=dtype)
    for served in chain(quick(key), models):
        assert served.layout == models.theta_0.layout
        assert served.vector.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert {t.dtype for t in served.export().values()} == {dtype}
        assert not served.vector.requires_grad


@every_rule
def test_degenerate_inputs_give_finite_weights(key: str) -> None:
    models = Models.draw(0)
    zero, same = models.theta_0.zeros(), models.theta_0
    untouched = [theta.map(lambda v: torch.cat([v[:50], same.vector[50:]])) for theta in models.thetas]
    for thetas, fishers in (
        (models.thetas, [zero] * 4),
        ([same] * 4, models.fishers),
        ([same] * 4, [zero] * 4),
        (untouched, models.fishers),
        ([models.thetas[0]] * 4, models.fishers),
        ([theta * 1e-30 for theta in models.thetas], [f * 1e-300 for f in models.fishers]),
    ):
        served = chain(quick(key), Models(same, thetas, fishers))
        assert all(bool(torch.isfinite(w.vector).all()) for w in served)
        if thetas is untouched:
            assert all(torch.equal(w.vector[50:], same.vector[50:]) for w in served)


@every_rule
def test_memory_saved_and_loaded_between_tasks_changes_no_bit(key: str, tmp_path: Path) -> None:
    models = Models.draw(1)
    whole, broken = chain(quick(key), models), chain(quick(key), models, between=lambda r: reloaded(r, tmp_path))
    assert [w.digest() for w in whole] == [w.digest() for w in broken]


@pytest.mark.parametrize(
    ("plugin", "vectors"),
    [("last", 0), ("average", 0), ("trm", 0), ("task_arithmetic", 1), ("pm_alpha", 2), ("oracle_scalar", 0),
     ("dare", 1), ("magmax", 1), ("randmix", 1), ("fisher", 2), ("coma", 0), ("cofima", 1), ("cmm_blend", 1),
     ("became", 1), ("iso_c", 1), ("dop", 0), ("nufilt", 0)],
)  # fmt: skip
def test_carried_bytes_do_not_grow_with_the_number_of_tasks(plugin: str, vectors: int) -> None:
    for T in (1, 4):
        models, kept = Models.draw(0, T), quick(plugin)
        chain(kept, models)
        assert nbytes(kept) == vectors * models.theta_0.nbytes


# ---- averages and task vectors -------------------------------------------------------------------------------------
@property_test
@given(seeds)
def test_after_one_task_rules_serve_what_was_trained(seed: int) -> None:
    models = Models.draw(seed, T=1)
    for key in ("last", "experts", "average", "pm_alpha", "oracle_scalar", "trm"):
        assert close(chain(quick(key), models)[0], models.thetas[0], 1e-14), key
    tau = models.thetas[0] - models.theta_0
    assert close(chain(rule("task_arithmetic", lam=0.7), models)[0], models.theta_0 + tau * 0.7)


@property_test
@given(seeds, st.permutations(range(4)))
def test_average_and_task_arithmetic_do_not_depend_on_the_order(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    shuffled = [models.thetas[i] for i in order]
    for key in ("average", "task_arithmetic"):
        one, other = (merge_recorded(rule(key), models.theta_0, t)[-1] for t in (models.thetas, shuffled))
        assert close(one, other)


@property_test
@given(seeds)
def test_task_arithmetic_over_t_is_average_and_average_is_the_mean(seed: int) -> None:
    models = Models.draw(seed)
    mean = chain(rule("average"), models)
    over_t = chain(rule("task_arithmetic", lam=1.0, over_t=True), models, "pretrained")
    for t in range(1, 5):
        expected = sum(models.thetas[1:t], models.thetas[0]) / t
        assert close(mean[t - 1], expected)
        assert close(over_t[t - 1], expected)


@property_test
@given(seeds, st.floats(0, 2))
def test_what_a_task_vector_is_where_training_does_not_start_at_theta_0(seed: int, lam: float) -> None:
    models = Models.draw(seed)
    total, increment = (rule("task_arithmetic", lam=lam, delta=d) for d in ("total", "increment"))
    served = models.theta_0
    for t, got in enumerate(chain(increment, models, "merged")):
        served = served + (models.thetas[t] - served) * lam  # the blend that the increments telescope to
        assert close(got, served, 1e-10)
    summed = models.theta_0.zeros()
    for theta, got in zip(models.thetas, chain(total, models, "previous"), strict=True):
        summed = summed + (theta - models.theta_0)
        assert close(got, models.theta_0 + summed * lam, 1e-10)
    last = chain(rule("task_arithmetic", lam=lam, delta="increment"), models, "previous")[-1]
    assert close(last, models.theta_0 + (models.thetas[-1] - models.theta_0) * lam, 1e-10)  # increments telescope
    both = [chain(rule("task_arithmetic", lam=lam, delta=d), models, "pretrained")[-1] for d in ("total", "increment")]
    assert both[0].digest() == both[1].digest()


def test_defaults_of_delta_by_start() -> None:
    deltas = {s: REGISTRY.resolve(f"task_arithmetic@{s}").rule_options["delta"]
              for s in ("pretrained", "previous", "merged")}  # fmt: skip
    assert deltas == {"pretrained": "increment", "previous": "total", "merged": "increment"}


# ---- on real images ------------------------------------------------------------------------------------------------
@dataclass
class Live:
    """Two tasks of digits, each trained for ten steps, the second from the first."""

    stream: Stream
    backbone: Backbone
    protocol: ProtocolConfig
    store: Store
    learnt: list[Learnt]

    def task(self, t: int = 2, data: str = "labelled") -> LiveTask:
        theta_0, mine = self.backbone.pretrained, self.learnt[t - 1]
        before = theta_0 if t == 1 else self.learnt[0].weights
        heads = [head for learnt in self.learnt[:t] for head in learnt.heads]
        return LiveTask(data, self.stream, self.stream.tasks[t - 1], self.backbone, self.protocol, heads, 0,
                        self.store, theta_0, before, before, mine.weights, mine.recorded)  # fmt: skip

    def train(self, how: Trainer, t: int = 2) -> Learnt:
        start = self.backbone.pretrained if t == 1 else self.learnt[0].weights
        return train(self.backbone, self.stream, [self.stream.tasks[t - 1]], how, start, self.protocol, 0,
                     ("snapshots:4",))  # fmt: skip


@pytest.fixture(scope="module")
def live(
    stream: Stream, backbone: Backbone, protocol: ProtocolConfig, tmp_path_factory: pytest.TempPathFactory
) -> Live:
    few = protocol.model_copy(update={"fisher_samples": 64})
    made = Live(stream, backbone, few, Store(tmp_path_factory.mktemp("store")), [])
    for t in (1, 2):
        made.learnt.append(made.train(Trainer(), t))
    return made


@pytest.mark.parametrize("key", ["perturb", "gauss"])
def test_no_perturbation_is_plain_training_to_the_last_bit(live: Live, key: str) -> None:
    none, some = (live.train(trainer(key, eps=eps)).weights.digest() for eps in (0.0, 0.5))
    assert none == live.learnt[1].weights.digest()
    assert some != none


def test_ewc_without_strength_is_plain_training_and_with_it_stays_closer(live: Live) -> None:
    anchor, plain = live.learnt[0].weights, live.learnt[1].weights
    moved = []
    for lam in (0.0, 100.0, 1e5):
        ewc = trainer("ewc", lam=lam)
        ewc.begin(live.backbone.pretrained)
        ewc.learnt(live.task(1))
        assert float(ewc.S.sum()) > 0
        learnt = live.train(ewc).weights
        assert (learnt.digest() == plain.digest()) == (lam == 0)
        moved.append((learnt - anchor).dot(ewc.S * (learnt - anchor)))
    assert moved[0] > moved[1] > moved[2]


def objective_on_fixed_batches(live: Live, weights: Weights) -> float:
    task = live.task()
    total = 0.0
    with torch.no_grad():
        for x, y in task.batches(64, 8, labelled=True):
            teacher, student = (log_softmax(task.logits(w, x, "old") / 2, -1) for w in (task.served, weights))
            total += float(cross_entropy(task.logits(weights, x), y))  # type: ignore[arg-type]
            total += 4 * float(kl_div(student, teacher, log_target=True, reduction="batchmean"))
    return total / 8


def test_trm_lowers_its_objective_from_the_average_on(live: Live, record_property: Record) -> None:
    average = TRM(steps=0).merge(live.task())
    task = live.task()
    merged = TRM(steps=20, lambda_g=0.0).merge(task)
    before, after = (objective_on_fixed_batches(live, w) for w in (average, merged))
    record_property("objective_before_and_after", f"{before:.4f} {after:.4f}")
    assert after < before
    assert close(average, rule("average").merge(live.task()), 1e-6)
    assert task.scalars["merge_steps"] == 20
    assert TRM(steps=2).merge(live.task()).digest() == TRM(steps=2).merge(live.task()).digest()


def test_trms_hinge_on_real_images(live: Live) -> None:
    off, tight = live.task(), live.task()
    without = TRM(steps=3, lambda_g=0.0).merge(off)
    with_it = TRM(steps=3, lambda_g=1.0, rho=50.0).merge(tight)
    assert tight.scalars["hinge_active"] == 1
    assert tight.scalars["g_ref"] > 0
    assert with_it.digest() != without.digest()


# ---- a rule reads what it declares, no more ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "refused"),
    [("none", "images labels validation"), ("unlabelled", "labels validation"), ("labelled", "validation"),
     ("oracle", "")],
)  # fmt: skip
def test_a_task_refuses_what_was_not_declared(live: Live, data: str, refused: str) -> None:
    task, theta = live.task(data=data), live.backbone.pretrained
    wishes: list[tuple[str, Callable[[], object]]] = [
        ("images", lambda: next(task.batches(8, 1))),
        ("labels", lambda: next(task.batches(8, 1, labelled=True))),
        ("labels", lambda: task.fisher("empirical")),
        ("images", lambda: task.fisher("exact")),
        ("validation", lambda: task.accuracy(theta)),
    ]
    for what, ask in wishes:
        if what in refused.split():
            with pytest.raises(PermissionError, match=rf"declares data='{data}' may not read {what}"):
                ask()
        else:
            ask()


def test_merge_batches_have_one_size_the_tasks_own_images_and_columns_of_its_head(live: Live) -> None:
    task = live.task()
    n = len(task.current.train)
    batches = list(task.batches(64, 25, labelled=True))
    assert len(batches) == 25  # more than two epochs
    assert {len(x) for x, _ in batches} == {64}
    assert {int(c) for _, y in batches for c in y} == set(range(5))  # type: ignore[union-attr]
    own = {bytes(image.numpy()) for image in live.stream.train_images[task.current.train]}
    assert all(bytes(image.numpy()) in own for x, _ in batches[:3] for image in x)
    for (x, _), (again, y) in zip(batches, task.batches(64, 25), strict=True):
        assert torch.equal(x, again)
        assert y is None
    assert [len(x) for x, _ in task.batches(10 * n, 2)] == [n, n]


def test_logits_of_old_current_and_seen_heads_are_parts_of_one_another(live: Live) -> None:
    task, x = live.task(), live.stream.train_images[:9]
    old, current, seen, fresh = (task.logits(task.trained, x, h) for h in ("old", "current", "seen", "fresh"))
    torch.testing.assert_close(torch.cat([old, current], dim=1), seen, rtol=0, atol=1e-6)
    assert fresh.shape == current.shape
    assert not torch.equal(fresh, current)
    assert torch.equal(fresh, task.logits(task.trained, x, "fresh"))
    with pytest.raises(ValueError, match="unknown heads 'all'"):
        task.logits(task.trained, x, "all")


def test_a_rules_random_streams_are_named_by_purpose(live: Live) -> None:
    draws = {(t, p): live.task(t).rng(p).integers(2**60) for t in (1, 2) for p in ("mask", "noise")}
    assert len(set(draws.values())) == 4
    assert live.task(1).rng("mask").integers(2**60) == draws[1, "mask"]
