"""What the scale of the logits does to rules that read them: `python -m benchmarks.temperature [--temperatures 1 30]`.

Two tasks of a stream are trained under each temperature of the training loss. Then, where AdaMerging takes its first
step after task 2 (theta_0 + 0.3 (tau_1 + tau_2)): the entropy of the predictions on training images of both tasks, each
under its own task's head, and the norm of the gradient of what AdaMerging minimises in its layer-wise
coefficients. Once with the logits as the heads give them (raw), once divided by the temperature, as `Task.logits` is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from bench.common.cache import Store
from bench.config.schema import SuiteConfig
from bench.method.tools.entropy import entropy
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.registry import Registry
from bench.run.workbench import Workbench


def first_step(cell: Cell, bench: Workbench, images: int, lam: float) -> dict[str, list[float]]:
    """(mean entropy, median entropy, gradient norm) of raw and of divided logits, in nats."""
    stream, backbone, temperature = bench.stream(cell), bench.backbone(cell), cell.protocol.train.temperature
    models = bench.models(cell, cell.method.build()[0], ())
    learnt = [models.of(task, backbone.pretrained, backbone.pretrained, []).learnt for task in stream.tasks[:2]]
    taus = [model.weights - backbone.pretrained for model in learnt]
    shown = [stream.train_images[task.train[:images]] for task in stream.tasks[:2]]
    measured = {}
    for name, scale in (("raw", 1.0), ("divided", temperature)):
        lambdas = torch.full((2, len(taus[0].layout.names)), lam, requires_grad=True)
        moved = [tau * tau.spread(row) for tau, row in zip(taus, lambdas, strict=True)]
        merged = backbone.pretrained + moved[0] + moved[1]
        logits = [model.heads[0](backbone.features(merged, x)) / scale for model, x in zip(learnt, shown, strict=True)]
        [gradient] = torch.autograd.grad(torch.stack([entropy(rows) for rows in logits]).sum(), lambdas)
        each = torch.stack([entropy(row[None]) for rows in logits for row in rows.detach()])
        measured[name] = [float(each.mean()), float(each.median()), float(gradient.norm())]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 30.0])
    parser.add_argument("--epochs", type=int, help="of training; default: the protocol's")
    parser.add_argument("--images", type=int, default=256, help="of each task")
    parser.add_argument("--dataset", default="glyphs_xor")
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    print("temperature  logits    mean entropy  median entropy  gradient norm   (nats)")
    for temperature in options.temperatures:
        changes = {"train.temperature": [temperature]} | ({"train.epochs": [options.epochs]} if options.epochs else {})
        suite = SuiteConfig(
            key="temperature", protocol="embedded", datasets=[options.dataset], tasks=[5], methods=["adamerging"],
            seeds="1", protocol_set=changes,
        )  # fmt: skip
        [cell], _ = expand(suite, Registry.load(), options.data, [])
        with tempfile.TemporaryDirectory() as folder:
            bench = Workbench(Path(folder), options.data, Store(Path(folder) / "cache"))
            for name, (mean, median, norm) in first_step(cell, bench, options.images, 0.3).items():
                print(f"{temperature:11g}  {name:8s} {mean:13.3g} {median:15.3g} {norm:14.3g}")


if __name__ == "__main__":
    main()
