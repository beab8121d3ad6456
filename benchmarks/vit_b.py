"""A ViT-B/16 for a few steps under ``pm`` (LoRA) and ``magmax`` (all weights): shapes, memory, time, images a second.

    python benchmarks/vit_b.py [--steps 3] [--batch 8] [--threads 2] [--device cpu] [--precision fp32]

Weights, images and class rows are random: this measures work, not accuracy. Each protocol runs in a process of its own,
so that its peak memory is its own. On a GPU the batch is the protocol's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIDE, CLASSES = 256, 20  #: of stored images; of the one task
PRESETS = {"pm": {}, "magmax": {"train.warmup_steps": "auto"}}


def measure(
    preset: str, steps: int, batch: int | None, threads: int, device: str, precision: str | None
) -> dict[str, Any]:
    import torch

    from bench.config.files import load_protocol
    from bench.data.dataset import Dataset
    from bench.data.stream import Stream
    from bench.method import Trainer
    from bench.model.backbone import Backbone
    from bench.model.clip_text import write_rows
    from bench.run.train import train

    torch.set_num_threads(threads)
    batch = batch or load_protocol(preset).train.batch
    small: dict[str, Any] = {"epochs": 1, "passes": 1, "schedule": "constant", "milestones": (), "batch": batch}
    if precision:
        small["precision"] = precision
    changes: dict[str, Any] = {"backbone.pretrained": False, **PRESETS[preset]}
    rng = np.random.default_rng(0)

    def images(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)

    with tempfile.TemporaryDirectory() as folder:
        if load_protocol(preset).head.kind == "zero_shot":
            rows = Path(folder) / "rows.safetensors"
            unit = torch.nn.functional.normalize(torch.randn(CLASSES, 512, generator=torch.Generator().manual_seed(0)))
            write_rows(rows, 100 * unit, [str(c) for c in range(CLASSES)], "random")
            changes["head.text"] = str(rows)
        protocol = load_protocol(preset, changes)
        protocol = protocol.model_copy(update={"train": protocol.train.model_copy(update=small)})
        assert protocol.image is not None
        began = time.perf_counter()
        backbone = Backbone(protocol, protocol.image, device)
        built = time.perf_counter() - began

        def run(n: int) -> tuple[float, float, Any]:
            labels = np.arange(n * batch) % CLASSES
            data = Dataset(
                "random", images(len(labels)), labels, images(CLASSES), np.arange(CLASSES), ("c",) * CLASSES, ""
            )
            stream = Stream(data, 1, class_order_seed=0, device=device)
            began, worked = time.perf_counter(), time.process_time()
            learnt = train(backbone, stream, stream.tasks, Trainer(), backbone.pretrained, protocol, run_seed=0)
            if device != "cpu":
                torch.cuda.synchronize()
            return time.perf_counter() - began, time.process_time() - worked, learnt

        if device != "cpu":
            run(1)  # kernels are loaded and chosen
        seconds, worked, learnt = run(steps)
        x = torch.from_numpy(images(batch)).to(device)
        began = time.perf_counter()
        for step in range(steps):
            pixels = backbone.transform.augmented(x, step)
        if device != "cpu":
            torch.cuda.synchronize()
        augmenting = (time.perf_counter() - began) / steps
        began = time.perf_counter()
        with torch.inference_mode():
            features = backbone.features(backbone.pretrained, x)
        if device != "cpu":
            torch.cuda.synchronize()
        shown = time.perf_counter() - began
    return {
        "protocol": preset,
        "model": protocol.backbone.model,
        "device": torch.cuda.get_device_name() if device != "cpu" else f"CPU, {threads} threads",
        "precision": protocol.train.precision,
        "batch": batch,
        "pixels": tuple(pixels.shape),
        "features": tuple(features.shape),
        "head": tuple(learnt.heads[0].weight.shape),
        "parameters": sum(p.numel() for p in backbone.module.parameters()),
        "adapted": backbone.pretrained.vector.numel(),
        "steps": learnt.steps,
        "build_s": round(built, 2),
        "s_per_step": round(seconds / learnt.steps, 3),
        "cpu_s_per_step": round(worked / learnt.steps, 3),  # what a busy machine does not stretch
        "train_images_per_s": round(learnt.steps * batch / seconds, 2),
        "augment_s_per_step": round(augmenting, 4),
        "test_images_per_s": round(batch / shown, 2),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20) if device != "cpu" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, help="default: 8 on a CPU, the protocol's on a GPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", help="default: cuda where there is one")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="default: the protocol's")
    parser.add_argument("--only", choices=[*PRESETS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.steps, args.batch, args.threads, args.device, args.precision)))
        return
    if args.device is None:
        import torch

        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = args.batch or (8 if args.device == "cpu" else None)
    command = [sys.executable, __file__, "--steps", str(args.steps), "--threads", str(args.threads)]
    command += ["--device", args.device, *(["--batch", str(batch)] if batch else [])]
    command += ["--precision", args.precision] if args.precision else []
    for preset in PRESETS:
        done = subprocess.run([*command, "--only", preset], stdout=subprocess.PIPE, text=True, check=True)
        for name, value in json.loads(done.stdout.splitlines()[-1]).items():
            if value is not None:
                print(f"{name:20s} {value}")
        print()


if __name__ == "__main__":
    main()
