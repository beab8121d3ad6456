"""Pre-train a protocol's backbone: full training of a random model on one dataset, by the one training loop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from bench.common.files import save_plain
from bench.config.files import shown_image
from bench.config.schema import DatasetConfig, ProtocolConfig
from bench.data.dataset import load_dataset
from bench.data.stream import Stream
from bench.method import Trainer
from bench.model.backbone import Backbone
from bench.model.heads import concatenate
from bench.run.evaluate import count, predict
from bench.run.train import train
from bench.run.workbench import threads


def pretrain(protocol: ProtocolConfig, dataset: DatasetConfig, data: Path, seed: int, out: Path) -> dict[str, Any]:
    """Train on ``dataset``, write the backbone without its head to ``out``, and say how good it is.

    The file is a safetensors checkpoint under timm's own names (``attn.qkv`` fused), so that
    ``timm.create_model(...).load_state_dict`` takes it.

    Returns:
        ``accuracy`` (percent, on the dataset's test part), ``seconds``, ``sha256`` of the file, ``parameters``.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with threads(protocol.threads), Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as bar:
        stream = Stream(load_dataset(dataset, data, protocol.image), 1, class_order_seed=seed, device=device)
        backbone = Backbone(protocol, shown_image(protocol, dataset), device, seed=seed)
        shown = bar.add_task(f"pre-training on {dataset.key}", total=None)
        learnt = train(
            backbone, stream, stream.tasks, Trainer(), backbone.pretrained, protocol, run_seed=seed,
            progress=lambda step, total: bar.update(shown, completed=step, total=total),
        )  # fmt: skip
        [predicted], _ = predict(
            backbone, learnt.weights, concatenate(learnt.heads), stream, stream.tasks, protocol.eval_batch
        )
    correct, total = count(predicted, stream, stream.tasks[0])
    tensors = backbone.export(learnt.weights)
    save_plain(out, tensors)
    return {
        "accuracy": 100 * correct / total,
        "seconds": learnt.seconds,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "parameters": sum(t.numel() for t in tensors.values()),
    }
