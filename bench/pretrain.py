"""Pre-train a protocol's backbone: full training of a random model on one dataset, by the one training loop."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from bench.backbone import Backbone, SplitQKV
from bench.cell import threads
from bench.config import DatasetConfig, ProtocolConfig
from bench.data.dataset import load_dataset
from bench.evaluate import count, predict
from bench.method import Trainer
from bench.store import replacing
from bench.stream import Stream
from bench.train import train


def pretrain(protocol: ProtocolConfig, dataset: DatasetConfig, data: Path, seed: int, out: Path) -> dict[str, Any]:
    """Train on ``dataset``, write the backbone without its head to ``out``, and say how good it is.

    The file is a safetensors checkpoint under timm's own names (``attn.qkv`` fused), so that
    ``timm.create_model(...).load_state_dict`` takes it.

    Returns:
        ``accuracy`` (percent, on the dataset's test part), ``seconds``, ``sha256`` of the file, ``parameters``.
    """
    from safetensors.torch import save_file

    with threads(protocol.threads):
        stream = Stream(load_dataset(dataset, data), 1, class_order_seed=seed)
        backbone = Backbone(protocol, dataset.image, seed=seed)
        learnt = train(backbone, stream, stream.tasks, Trainer(), backbone.pretrained, protocol, run_seed=seed)
        [predicted], _ = predict(backbone, learnt.weights, learnt.heads, stream, stream.tasks, protocol.eval_batch)
    correct, total = count(predicted, stream, stream.tasks[0])
    tensors = dict(backbone.module.state_dict()) | learnt.weights.tensors()
    for name in [n for n, m in backbone.module.named_modules() if isinstance(m, SplitQKV)]:
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{name}.{p}.{kind}", None) for p in "qkv"]
            if parts[0] is not None:
                tensors[f"{name}.{kind}"] = torch.cat([p for p in parts if p is not None])
    with replacing(out) as temporary:
        save_file({n: t.detach().contiguous().clone() for n, t in tensors.items()}, temporary)
    return {
        "accuracy": 100 * correct / total,
        "seconds": learnt.seconds,
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "parameters": sum(t.numel() for t in tensors.values()),
    }
