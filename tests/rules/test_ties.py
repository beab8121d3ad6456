"""TIES against three references, its own definition written out entry by entry, and what the paper leaves open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bench.method.tools.sparsify
from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.tools.sparsify import elect_and_merge, trim
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds


def part(g: Golden, prefix: str, like: Weights) -> Weights:
    """Some files list their outputs in alphabetical order."""
    found = g.part(prefix).tensors()
    return Weights.of({name: found[name] for name in like.layout.names})


def served(g: Golden, **options: Any) -> tuple[list[Weights], Any]:
    ties, theta_0 = rule("ties", **options), g.part("theta0")
    return merge_recorded(ties, theta_0, [theta_0 + tau for tau in g.parts("tau")]), ties


# ---- reference numbers ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["ties_mean_K20", "ties_sum_K20", "ties_sum_K50", "ties_max_K35", "ties_dyadic_sum"]
)  # fmt: skip
def test_golden_ties(golden: Callable[[str], Golden], name: str) -> None:
    g = golden(name)
    told = g.meta["hparams"]
    options = {"density": told["K"] / 100, "combine": told["merge_func"], "like": "fusionbench"}
    steps, ties = served(g, lam=told["lam"], **options)
    theta_0 = g.part("theta0")
    g.check(steps[-1], part(g, "out/theta", theta_0))
    g.check(ties.merged(ties.kept), part(g, "out/tau", theta_0))
    for i, (trimmed, count) in enumerate(zip(ties.kept, told["kept_per_task"], strict=True)):
        g.check(trimmed, part(g, f"out/trimmed/{i}", theta_0))
        assert int((trimmed.vector != 0).sum()) == count


def test_golden_ties_fold_fusionbench(golden: Callable[[str], Golden]) -> None:
    g = golden("ties_fold_fusionbench")
    named = REGISTRY.resolve("ties_fb_continual").rule_options
    assert (named["density"], named["combine"], named["lam"]) == (0.2, "sum", g.meta["hparams"]["lam"])
    steps, _ = served(g, **named)
    for t, step in enumerate(steps):
        g.check(step, g.part(f"out/step/{t}/theta"))


@pytest.mark.parametrize("name", ["mergekit_ties", "mergekit_ties_cancel"])
def test_golden_mergekit_ties(golden: Callable[[str], Golden], name: str) -> None:
    g = golden(name)
    told, theta_0 = g.meta["hparams"], g.part("theta0")
    ties = rule("ties", density=told["density"], lam=told["lam"], like="mergekit")
    # From zeros: where task vectors cancel exactly, theta_0 + tau - theta_0 no longer does.
    g.check(theta_0 + merge_recorded(ties, theta_0.zeros(), g.parts("tau"))[-1], g.part("out/theta"))


def test_golden_mergekit_trim(golden: Callable[[str], Golden]) -> None:
    g = golden("mergekit_trim")
    _, ties = served(g, density=g.meta["hparams"]["density"], like="mergekit")
    for i, trimmed in enumerate(ties.kept):
        g.check(trimmed, g.part(f"out/trimmed/{i}"))
        assert {n: int((v != 0).sum()) for n, v in trimmed.items()} == g.meta["hparams"]["kept"]


# ---- trimming ------------------------------------------------------------------------------------------------------
@property_test
@given(seeds, st.floats(0.001, 1), st.booleans())
def test_exactly_the_share_asked_for_stays_and_it_is_the_largest(seed: int, density: float, equal: bool) -> None:
    tau = Models.draw(seed).thetas[0]
    if equal:
        tau = tau.map(lambda v: (v * 2).round() / 2 + 0.25)  # many magnitudes are equal, none is 0
    kept = rule("ties", density=density).trimmed(tau).vector  # type: ignore[attr-defined]
    count = max(1, round(density * len(kept)))
    first = sorted(range(len(kept)), key=lambda i: (-abs(float(tau.vector[i])), i))[:count]
    assert kept.nonzero()[:, 0].tolist() == sorted(first)
    assert torch.equal(kept[kept != 0], tau.vector[kept != 0])


def test_trim_at_its_ends() -> None:
    v = torch.tensor([1.0, -2.0, 2.0, 0.0])
    assert trim(v, 0).tolist() == [0, 0, 0, 0]
    assert trim(v, 1).tolist() == [0, -2, 0, 0]
    assert trim(v, 1, ties=True).tolist() == [0, -2, 2, 0]
    assert trim(v, 9).tolist() == v.tolist()
    assert trim(v, 9) is not v
    assert trim(torch.zeros(4), 2).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("like", ["ours", "fusionbench", "mergekit"])
def test_density_one_trims_nothing_and_equal_signs_give_the_mean(like: str) -> None:
    models = Models.draw(0)
    models.thetas = [models.theta_0 + (theta - models.theta_0).map(torch.abs) for theta in models.thetas]
    for got, mean in zip(chain(rule("ties", density=1.0, like=like), models, "pretrained"),
                         chain(rule("average"), models, "pretrained"), strict=True):  # fmt: skip
        assert close(got, mean)


@pytest.mark.parametrize("like", ["ours", "fusionbench", "mergekit"])
def test_every_tensor_of_one_entry_and_a_tiny_density_are_served(like: str) -> None:
    theta_0 = Weights.of({"a": torch.zeros(1), "b": torch.zeros(3)})
    theta = Weights.of({"a": torch.ones(1), "b": torch.tensor([3.0, 2.0, 1.0])})
    [got] = merge_recorded(rule("ties", density=0.01, like=like), theta_0, [theta])
    assert got.vector.tolist() == ([1, 3, 0, 0] if like == "mergekit" else [0, 3, 0, 0])


# ---- election and merging ------------------------------------------------------------------------------------------
def by_hand(vectors: list[list[float]], combine: str, cancelled: str) -> list[float]:
    def sign(x: float) -> int:
        return (x > 0) - (x < 0)

    elected = [sign(sum(column)) for column in zip(*vectors, strict=True)]
    default = 1 if cancelled == "positive" or sum(elected) > 0 else -1
    out = []
    for column, s in zip(zip(*vectors, strict=True), elected, strict=True):
        agree = [x for x in column if sign(x) == (s or default)]
        value = sum(agree) if combine != "max" else max(agree, key=abs, default=0.0)
        out.append(value / max(1, len(agree)) if combine == "mean" else value)
    return out


@property_test
@given(
    st.integers(1, 6).flatmap(lambda T: st.lists(st.lists(st.integers(-2, 2), min_size=T, max_size=T), min_size=1)),
    st.sampled_from(["mean", "sum", "max"]),
    st.sampled_from(["majority", "positive"]),
    st.sampled_from([1, 7, 2**20]),
)
def test_election_and_merge_are_their_definition_in_blocks_of_any_size(
    columns: list[list[int]], combine: Any, cancelled: Any, block: int
) -> None:
    vectors = torch.tensor(columns, dtype=torch.float64).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.method.tools.sparsify, "BLOCK", block)
        got = elect_and_merge(list(vectors), combine, cancelled)
    torch.testing.assert_close(got, torch.tensor(by_hand(vectors.tolist(), combine, cancelled), dtype=torch.float64))


def test_opposite_tasks_take_the_sign_that_the_tie_rule_says() -> None:
    tau = torch.tensor([1.0, -3.0])
    assert elect_and_merge([tau, -tau]).tolist() == [-1, -3]  # nothing was elected anywhere
    assert elect_and_merge([tau, -tau], cancelled="positive").tolist() == [1, 3]
    for third in (1.0, -1.0):  # an entry beside them decides for those that cancel
        pair = [torch.tensor([1.0, -3.0, third]), torch.tensor([-1.0, 3.0, third])]
        assert elect_and_merge(pair).tolist() == [third, 3 * third, third]


def test_rounding_turns_no_sign_with_the_order_of_tasks() -> None:
    vectors = [torch.tensor([x, 1.0]) for x in (0.1, 0.2, -0.3)]
    orders = ([0, 1, 2], [2, 1, 0], [0, 2, 1])
    assert len({float(sum(vectors[i][0] for i in order)) for order in orders}) > 1  # type: ignore[misc]
    signs = {float(elect_and_merge([vectors[i] for i in order], "sum")[0]) > 0 for order in orders}
    assert len(signs) == 1


@property_test
@given(seeds, st.permutations(range(4)), st.sampled_from(["mean", "sum", "max"]))
def test_recomputed_it_does_not_depend_on_the_order_and_folded_it_does(
    seed: int, order: list[int], combine: str
) -> None:
    models = Models.draw(seed)
    for mode, other_order in (("recompute", order), ("fold", [3, 2, 1, 0]), ("fold_fusionbench", [3, 2, 1, 0])):
        shuffled = replace(models, thetas=[models.thetas[i] for i in other_order])
        ties = [rule("ties", density=0.5, combine=combine, mode=mode) for _ in range(2)]
        one, other = (chain(r, m, "pretrained")[-1] for r, m in zip(ties, (models, shuffled), strict=True))
        assert close(one, other) == ties[0].order_invariant == (mode == "recompute"), mode


# ---- on a stream ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("start", ["pretrained", "merged"])
def test_fold_merges_what_was_served_and_the_new_task_from_theta_0(start: str) -> None:
    models = Models.draw(1)
    got = chain(rule("ties", mode="fold", lam=0.8), models, start)
    batch = rule("ties", lam=0.8)
    batch.begin(models.theta_0)
    served = models.theta_0
    for t, theta in enumerate(models.thetas, 1):
        origin = served if start == "merged" else models.theta_0
        pair = [batch.trimmed(w) for w in (served - models.theta_0, theta - origin)]  # type: ignore[attr-defined]
        served = models.theta_0 + batch.merged(pair) * 0.8  # type: ignore[attr-defined]
        assert close(got[t - 1], served)
    alone = chain(rule("ties", lam=0.8), models, "pretrained")
    assert got[0].digest() == alone[0].digest()
    assert not close(got[2], alone[2], 1e-3)


def test_what_it_carries() -> None:
    for T in (1, 4):
        models = Models.draw(0, T)
        for mode, vectors in (("recompute", T), ("fold", 0), ("fold_fusionbench", 0)):
            kept = rule("ties", mode=mode)
            chain(kept, models)
            assert nbytes(kept) == vectors * models.theta_0.nbytes


def test_presets() -> None:
    def told(key: str) -> tuple[Any, ...]:
        method = REGISTRY.resolve(key)
        o = method.rule_options
        assert method.key == key
        return o["density"], o["combine"], o["lam"], o["mode"], o["like"], method.start

    assert told("ties") == (0.2, "mean", 1.0, "recompute", "ours", "pretrained")
    assert told("ties_fb") == (0.2, "sum", 0.3, "recompute", "fusionbench", "pretrained")
    assert told("ties_magmax") == (0.2, "mean", 0.55, "recompute", "fusionbench", "pretrained")
    assert told("ties_fold") == (0.2, "mean", 1.0, "fold", "ours", "pretrained")
    assert told("ties_fb_continual") == (0.2, "sum", 0.5, "fold_fusionbench", "fusionbench", "pretrained")
    assert told("ties_mergekit")[4] == "mergekit"
