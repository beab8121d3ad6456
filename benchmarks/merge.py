"""What a merge costs at ViT-B/16's size: `python benchmarks/merge.py [--tasks 2 10 50] [--rules average ties ...]`.

Each rule of `methods/` against the same equations written tensor by tensor (below), in the same run. 24 tensors of 768
by 768 are what P&M's protocol adapts: key and value of twelve blocks, 14.2 M numbers. Both sides serve theta_hat_t
after every task, as a stream needs, and must agree (`difference`: relative, of a sample of entries). Every measurement
is a process of its own: seconds are those of the merges alone, memory is the peak resident size over what the process
held before (theta_0 and one task's inputs are in it on both sides). Spectral and Gram rules take seconds a tensor on a
CPU: `LAYERS` says how many of the 24 they get.

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

from bench.method import Gram
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Weights
from bench.registry import Registry

SIZE, ALL = 768, 24
LAYERS = {"regmean": 6, "lot": 6, "opcm": 2, "lore": 1, "doge": 1}
Named = dict[str, Tensor]
Step = Callable[[int, Named, Named, Named, Named, Named], Named]


# ---- inputs: drawn when they are needed, so that only what a rule carries stays in memory
def draw(t: int, layers: int, what: str) -> Named:
    out = {}
    for layer in range(layers):
        generator = torch.Generator().manual_seed(1000 * t + layer)
        noise = torch.randn(SIZE, SIZE, generator=generator)
        out[f"blocks.{layer}.weight"] = {
            "theta0": lambda x: x * 0.02,
            "tau": lambda x: x * 1e-3,
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
            P.fill_diagonal_(0)
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


REFERENCES: dict[str, tuple[Callable[[], Step], set[str]]] = {
    "average": (average, set()),
    "task_arithmetic": (task_arithmetic, set()),
    "coma": (coma, set()),
    "magmax": (magmax, set()),
    "ties": (ties, set()),
    "fisher": (fisher, {"fisher"}),
    "cofima": (cofima, {"fisher"}),
    "became": (became, {"fisher"}),
    "pm_alpha": (pm_alpha, {"fisher"}),
    "regmean": (regmean, {"gram"}),
    "lot": (lot, {"gram"}),
    "opcm": (opcm, set()),
    "lore": (lore, set()),
}


# ---- one measurement a process
def measure(rule: str, tasks: int, side: str) -> dict[str, Any]:
    layers, (reference, needs) = LAYERS.get(rule, ALL), REFERENCES[rule]
    theta0 = draw(0, layers, "theta0")
    before, spent = psutil.Process().memory_info().rss, 0.0
    if side == "ours":
        pretrained, began = Weights.of(theta0), 0.0

        def recordings() -> Iterator[Recording]:
            nonlocal began
            for theta, F, G in inputs(tasks, layers, theta0, needs):
                fisher = dict.fromkeys(("fisher", "fisher@elsewhere"), Weights.of(F)) if F else {}
                gram = {"gram": {n: Gram(g, SIZE) for n, g in G.items()}} if G else {}
                known = Recording(Weights.of(theta), fisher | gram)
                del theta, F, G, fisher, gram
                began = time.perf_counter()
                yield known

        served = theta0
        for task in merge_stream(Registry.load().rules[rule](), pretrained, recordings()):
            spent += time.perf_counter() - began
            served = task.served.tensors()
    else:
        step, served = reference(), theta0
        for t, (theta, F, G) in enumerate(inputs(tasks, layers, theta0, needs), 1):
            began = time.perf_counter()
            served = step(t, theta0, served, theta, F, G)
            spent += time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    moved = [(served[n] - theta0[n]).double() for n in theta0]
    probe = torch.cat([x.flatten()[:: SIZE * 3 + 1] for x in moved])
    return {"seconds": spent, "peak_mb": peak / 2**20, "probe": probe.tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 10, 50])
    parser.add_argument("--rules", nargs="+", default=list(REFERENCES), choices=list(REFERENCES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--limit", type=float, default=600, help="seconds a measurement may take")
    parser.add_argument("--one", nargs=2, metavar=("RULE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one[0], options.tasks[0], options.one[1])))
        return
    print(f"torch {torch.__version__}, {options.threads} threads; seconds of all merges of a stream; peak MB")
    print(f"{'rule':16s} {'tensors':>7s} {'T':>3s} {'ours s':>9s} {'plain s':>9s} {'plain/ours':>10s} "
          f"{'ours MB':>8s} {'plain MB':>8s} {'difference':>10s}")  # fmt: skip
    for rule in options.rules:
        for tasks in options.tasks:
            told: dict[str, Any] = {}
            for side in ("ours", "plain"):
                command = [sys.executable, __file__, "--one", rule, side, "--tasks", str(tasks)]
                command += ["--threads", str(options.threads)]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=options.limit)
                    told[side] = json.loads(done.stdout)
                except subprocess.TimeoutExpired:
                    told[side] = None
            a, b = told["ours"], told["plain"]
            row = f"{rule:16s} {LAYERS.get(rule, ALL):7d} {tasks:3d}"
            if a is None or b is None:
                late = " and ".join(side for side, x in told.items() if x is None)
                print(f"{row}  {late}: over {options.limit:g} s", flush=True)
                break  # more tasks take longer
            x, y = torch.tensor(a["probe"]), torch.tensor(b["probe"])
            seconds = f"{a['seconds']:9.3f} {b['seconds']:9.3f} {b['seconds'] / a['seconds']:10.2f}"
            memory = f"{a['peak_mb']:8.0f} {b['peak_mb']:8.0f}"
            print(f"{row} {seconds} {memory} {float((x - y).norm() / y.norm()):10.1e}", flush=True)


if __name__ == "__main__":
    main()
