"""What a merge costs at ViT-B/16's size: `python benchmarks/merge.py [--tasks 2 10 50] [--rules average ties ...]`.

Every rule of `methods/` that merges from weights, Fishers or Gram matrices, found in the registry, with its default
options; and beside some of them the same equations written tensor by tensor (below), in the same run. 24 tensors of 768
by 768 are what P&M's protocol adapts: key and value of twelve blocks, 14.2 M numbers, each changed by a task by a
matrix of rank 10 as its LoRA gives. Statistics are drawn at random: what it costs to compute them (RegMean++ needs a
pass over images for every block) is not in these numbers. Both sides serve theta_hat_t after every task, as a stream
needs, and must agree (`difference`: relative, of a sample of entries). Every measurement is a process of its own:
seconds are those of the merges alone, of all of a stream and of the last one, memory is the peak resident size over
what the process held before (theta_0 and one task's inputs are in it on both sides). Where a rule takes seconds a
tensor on a CPU, `LAYERS` says how many of the 24 it gets (`--layers` gives all rules as many).

On a CPU the one vector does not pay for elementwise rules: its temporaries (57 MB) go through memory, where those of
single tensors (2.4 MB) stay in cache. It is meant for GPUs, and for rules that rank or sum over all weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import torch
from torch import Tensor

from bench.method import Gram, Rule
from bench.method.asking import IMAGES, Need
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Weights
from bench.registry import Registry

SIZE, ALL, RANK = 768, 24, 10
LAYERS = {"regmean": 6, "regmean_pp": 6, "lot": 6, "opcm": 2, "wudi": 2, "dop": 2, "lore": 1, "doge": 1}
Named = dict[str, Tensor]
Step = Callable[[int, Named, Named, Named, Named, Named], Named]


# ---- inputs: drawn when they are needed, so that only what a rule carries stays in memory
def draw(t: int, layers: int, what: str) -> Named:
    out = {}
    for layer in range(layers):
        generator = torch.Generator().manual_seed(1000 * t + layer)
        noise = torch.randn(SIZE, SIZE, generator=generator)
        out[f"blocks.{layer // 2}.attn.qkv.{'kv'[layer % 2]}.weight"] = {
            "theta0": lambda x: x * 0.02,
            "tau": lambda x: x[:, :RANK] @ x[RANK : 2 * RANK] * (1e-3 / RANK**0.5),
            "fisher": lambda x: x.square() * 1e-6,
            "gram": lambda x: (x.T @ x).double(),
        }[what](noise)
    return out


def inputs(tasks: int, layers: int, theta0: Named, needs: set[str]) -> Iterator[tuple[Named, Named, Named]]:
    """(theta*_t, Fisher, Gram) of each task; what a rule does not need is empty."""
    for t in range(1, tasks + 1):
        tau = draw(t, layers, "tau")
        theta = {name: theta0[name] + tau[name] for name in theta0}
        fisher = draw(t + 500, layers, "fisher") if "fisher" in needs else {}
        gram = draw(t + 900, layers, "gram") if "gram" in needs else {}
        yield theta, fisher, gram


# ---- the equations, tensor by tensor
def average() -> Step:
    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        return {n: served[n] + (theta[n] - served[n]) / t for n in theta}

    return step


def task_arithmetic() -> Step:
    total: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        for n in theta:
            total[n] = total.get(n, torch.zeros_like(theta[n])) + (theta[n] - theta0[n])
        return {n: theta0[n] + 0.3 * total[n] for n in theta}

    return step


def coma() -> Step:
    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        return dict(theta) if t == 1 else {n: 0.6 * served[n] + 0.4 * theta[n] for n in theta}

    return step


def cofima() -> Step:
    old: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        out = dict(theta)
        for n in theta if t > 1 else ():
            f, g = 0.6 * old[n], 0.4 * F[n]
            out[n] = (f * served[n] + g * theta[n]) / (f + g)
        old.update(F)
        return out

    return step


def fisher() -> Step:
    S: Named = {}
    m: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        eps = 1e-6 * float(sum(f.double().sum() for f in F.values()) / sum(f.numel() for f in F.values()))
        for n in theta:
            S[n] = S.get(n, torch.zeros_like(F[n])) + (F[n] + eps)
            m[n] = m.get(n, torch.zeros_like(F[n])) + (F[n] + eps) * (theta[n] - theta0[n])
        return {n: theta0[n] + m[n] / S[n] for n in theta}

    return step


def pm_alpha() -> Step:
    S: Named = {}
    m: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        slope = curvature = 0.0
        for n in theta:
            S[n] = S.get(n, torch.zeros_like(F[n])) + F[n]
            m[n] = m.get(n, torch.zeros_like(F[n])) + F[n] * (theta[n] - theta0[n])
            D = (theta[n] - served[n]).double()
            slope += float((D * (m[n] - S[n] * (served[n] - theta0[n])).double()).sum())
            curvature += float((D * (S[n] * (theta[n] - served[n])).double()).sum())
        alpha = min(max(slope / curvature, 0.0), 1.0)
        return {n: served[n] + alpha * (theta[n] - served[n]) for n in theta}

    return step


def became() -> Step:
    old: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        out = dict(theta)
        if t > 1:
            D = {n: (theta[n] - served[n]).double() for n in theta}
            up = sum(float((F[n].double() * D[n] * D[n]).sum()) for n in theta)
            down = sum(float(((F[n] + old[n]).double() * D[n] * D[n]).sum()) for n in theta)
            out = {n: served[n] + up / down * (theta[n] - served[n]) for n in theta}
        for n in theta:
            old[n] = old.get(n, torch.zeros_like(F[n])) + F[n]
        return out

    return step


def magmax() -> Step:
    largest: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        for n in theta:
            tau = theta[n] - theta0[n]
            kept = largest.get(n, torch.zeros_like(tau))
            largest[n] = torch.where(tau.abs() >= kept.abs(), tau, kept)
        return {n: theta0[n] + 0.5 * largest[n] for n in theta}

    return step


def ties() -> Step:
    taus: list[Named] = []

    def trimmed(tau: Named) -> Named:
        magnitude = torch.cat([x.flatten() for x in tau.values()]).abs()
        keep = max(1, round(0.2 * len(magnitude)))
        threshold = torch.topk(magnitude, keep).values[-1]
        return {n: torch.where(x.abs() >= threshold, x, 0) for n, x in tau.items()}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        taus.append({n: theta[n] - theta0[n] for n in theta})
        kept = [trimmed(tau) for tau in taus]
        signs = {n: sum(k[n] for k in kept).sign() for n in theta}  # type: ignore[union-attr]
        majority = sum(float(s.sum()) for s in signs.values())
        out = {}
        for n in theta:
            sign = torch.where(signs[n] == 0, float(majority > 0) - float(majority < 0), signs[n])
            stack = torch.stack([k[n] for k in kept])
            agree = torch.where((stack > 0) == (sign > 0), stack, 0)
            out[n] = theta0[n] + agree.sum(0) / (agree != 0).sum(0).clamp(min=1)
        return out

    return step


def regmean() -> Step:
    GW: Named = {}
    total: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        out = {}
        for n in theta:
            gram = G[n] / SIZE
            gram = 0.95 * gram + 0.05 * torch.diag(gram.diag())
            total[n] = total.get(n, torch.zeros_like(gram)) + gram
            GW[n] = GW.get(n, torch.zeros_like(gram)) + gram @ (theta[n] - theta0[n]).double().T
            out[n] = theta0[n] + torch.linalg.solve(total[n], GW[n]).T.float()
        return out

    return step


def lot() -> Step:
    GT: Named = {}
    total: Named = {}

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        out = {}
        for n in theta:
            total[n] = total.get(n, torch.zeros_like(G[n])) + G[n]
            GT[n] = GT.get(n, torch.zeros_like(G[n])) + G[n] @ (theta[n] - theta0[n]).double().T
            out[n] = theta0[n] + (torch.linalg.pinv(total[n], rtol=1e-6, hermitian=True) @ GT[n]).T.float()
        return out

    return step


def opcm() -> Step:
    A: Named = {}
    norms: list[float] = []

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        tau = {n: (theta[n] - theta0[n]).double() for n in theta}
        norms.append(sum(float(x.square().sum()) for x in tau.values()) ** 0.5)
        for n in theta:
            if t == 1:
                A[n] = tau[n]
                continue
            U, s, Vh = torch.linalg.svd(A[n])
            r = int((s.cumsum(0) / s.sum() > 0.5).nonzero()[0])
            P = U.T @ tau[n] @ Vh.T
            rank = int((s > 1e-6 * s[0]).sum())  # what lies beyond is an arbitrary basis (methods/opcm.py)
            P.diagonal()[:rank] = 0
            P[:r, :r] = 0
            A[n] = A[n] + U @ P @ Vh
        scale = sum(norms) / len(norms) / sum(float(x.square().sum()) for x in A.values()) ** 0.5
        return {n: theta0[n] + (scale * A[n]).float() for n in theta}

    return step


def lore() -> Step:
    thetas: list[Named] = []

    def step(t: int, theta0: Named, served: Named, theta: Named, F: Named, G: Named) -> Named:
        thetas.append(dict(theta))
        out = {}
        for n in theta if t > 1 else ():
            W = torch.stack([x[n].double() for x in thetas])
            mu = 0.1 * max(float(torch.linalg.matrix_norm(w - W.mean(0), 2)) for w in W)
            d = torch.zeros_like(W)
            for _ in range(20):
                B = (W - d).mean(0)
                for i, w in enumerate(W):
                    U, s, Vh = torch.linalg.svd(w - B, full_matrices=False)
                    d[i] = U @ torch.diag((s - mu).clamp(min=0)) @ Vh
            out[n] = (B + d.mean(0)).float()
        return out or dict(theta)

    return step


REFERENCES: dict[str, Callable[[], Step]] = {
    "average": average, "task_arithmetic": task_arithmetic, "coma": coma, "magmax": magmax, "ties": ties,
    "fisher": fisher, "cofima": cofima, "became": became, "pm_alpha": pm_alpha, "regmean": regmean, "lot": lot,
    "opcm": opcm, "lore": lore,
}  # fmt: skip


def measured() -> dict[str, type[Rule]]:
    """The rules that can be merged without images, by key."""

    def from_tensors(rule: type[Rule]) -> bool:
        return not (rule.experts or rule.data == "oracle" or rule().record or needs(rule) & set(IMAGES))

    return {key: rule for key, rule in Registry.load().rules.items() if from_tensors(rule)}


def needs(rule: type[Rule]) -> set[str]:
    """Keys of the statistics that it reads."""
    return {Need.parse(text).key for text in rule().needs}


# ---- one measurement a process
def measure(key: str, layers: int, tasks: int, side: str) -> dict[str, Any]:
    rule, theta0 = measured()[key], draw(0, layers, "theta0")
    before, spent = psutil.Process().memory_info().rss, list[float]()
    stream = inputs(tasks, layers, theta0, needs(rule))
    if side == "ours":
        pretrained, began = Weights.of(theta0), 0.0

        def recordings() -> Iterator[Recording]:
            nonlocal began
            for theta, F, G in stream:
                grams = {name: Gram(g, SIZE) for name, g in G.items()}
                statistics = {"fisher": Weights.of(F) if F else None, "gram": grams}
                at = {f"{name}{place}": x for name, x in statistics.items() if x for place in ("", "@elsewhere")}
                known = Recording(Weights.of(theta), at)
                del theta, F, G, grams, statistics, at
                began = time.perf_counter()
                yield known

        served = theta0
        for task in merge_stream(rule(), pretrained, recordings()):
            spent.append(time.perf_counter() - began)
            served = task.served.tensors()
    else:
        step, served = REFERENCES[key](), theta0
        for t, (theta, F, G) in enumerate(stream, 1):
            start = time.perf_counter()
            served = step(t, theta0, served, theta, F, G)
            spent.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    moved = [(served[n] - theta0[n]).double() for n in theta0]
    probe = torch.cat([x.flatten()[:: SIZE * 3 + 1] for x in moved])
    return {"seconds": sum(spent), "last": spent[-1], "peak_mb": peak / 2**20, "probe": probe.tolist()}


def apart(key: str, layers: int, tasks: int, side: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """:func:`measure` in a process of its own; None where it takes too long."""
    command = [sys.executable, __file__, "--one", key, side, "--tasks", str(tasks), "--layers", str(layers)]
    command += ["--threads", str(options.threads)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return None
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def row(ours: dict[str, Any], plain: dict[str, Any] | None) -> str:
    """One measurement in words; what only a plain side gives is left blank without one."""
    told = f"{ours['seconds']:9.3f} {ours['last']:8.3f} {ours['peak_mb']:8.0f}"
    if plain is None:
        return told
    x, y = torch.tensor(ours["probe"]), torch.tensor(plain["probe"])
    ratio, difference = plain["seconds"] / ours["seconds"], float((x - y).norm() / y.norm())
    return f"{told} {plain['seconds']:9.3f} {plain['peak_mb']:8.0f} {ratio:10.2f} {difference:10.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--rules", nargs="+", metavar="RULE", help="default: all that merge from tensors")
    parser.add_argument("--layers", type=int, help="tensors of every rule (default: 24, fewer where LAYERS says so)")
    parser.add_argument("--ours", action="store_true", help="leave the plain side out")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--limit", type=float, default=600, help="seconds a measurement may take")
    parser.add_argument("--one", nargs=2, metavar=("RULE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one[0], options.layers, options.tasks[0], options.one[1])))
        return
    known = measured()
    for key in options.rules or ():
        if key not in known:
            parser.error(f"no rule {key!r} that merges from tensors alone; there are {', '.join(sorted(known))}")
    print(
        f"torch {torch.__version__}, {options.threads} threads; seconds of all merges of a stream and of the last one"
    )
    print(f"{'rule':16s} {'tensors':>7s} {'T':>3s} {'ours s':>9s} {'last s':>8s} {'ours MB':>8s} {'plain s':>9s} "
          f"{'plain MB':>8s} {'plain/ours':>10s} {'difference':>10s}")  # fmt: skip
    for key in options.rules or sorted(known):
        layers = options.layers or LAYERS.get(key, ALL)
        sides = ["ours", "plain"] if key in REFERENCES and not options.ours else ["ours"]
        for tasks in options.tasks:
            told = {side: apart(key, layers, tasks, side, options) for side in sides}
            late = [side for side in sides if told[side] is None]
            words = f"  {' and '.join(late)}: over {options.limit:g} s"
            ours = told["ours"]
            print(f"{key:16s} {layers:7d} {tasks:3d} {words if late or not ours else row(ours, told.get('plain'))}",
                  flush=True)  # fmt: skip
            if late:
                break  # more tasks take longer


if __name__ == "__main__":
    main()
