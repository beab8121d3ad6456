"""What EfficientNet-Lite0 knows by itself, at which size of image, and what that costs on one core.

    python -m benchmarks.lite0 --data DATA [--sizes 32,64,96,128]

Two tables (Markdown): of the published classifier, the share of Tiny-ImageNet's validation images that it puts into
the right one of ImageNet's 1000 classes (chance: 0.1 %), under two normalisations; of its frozen features, the
test accuracy of class means (cosine) and of ridge regression (the best of four penalties, chosen on the test images:
how much there is in them, not a method), with the processor time that a forward and a training step take an image.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize, one_hot

from bench.config.files import load_dataset_config, load_protocol, weights_file
from bench.data.dataset import Dataset, load_dataset
from bench.model.backbone import Backbone

PROTOCOL, BATCH = "lite0", 64
NORMALISATIONS = {
    "0.5, 0.5": ([0.5] * 3, [0.5] * 3),
    "ImageNet's mean, std": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
STREAMS = ("cifar10_small", "omniglot")


def backbone_at(size: int, mean: list[float], std: list[float]) -> Backbone:
    protocol = load_protocol(PROTOCOL, {"image.size": size, "image.mean": mean, "image.std": std})
    assert protocol.image is not None
    return Backbone(protocol, protocol.image)


def dataset_of(key: str, data: Path) -> Dataset:
    return load_dataset(load_dataset_config(key, []), data, load_protocol(PROTOCOL).image)


@torch.no_grad()
def features(backbone: Backbone, images: np.ndarray) -> Tensor:
    parts = [torch.from_numpy(np.array(part)) for part in np.array_split(images, -(-len(images) // BATCH))]
    return torch.cat([backbone.features(backbone.pretrained, part) for part in parts])


def print_class_accuracy(data: Path, sizes: list[int]) -> None:
    """Of every fifth validation image of Tiny-ImageNet."""
    tiny, classifier = dataset_of("tiny_imagenet", data), load_file(weights_file(load_protocol(PROTOCOL)))
    position = {wnid: i for i, wnid in enumerate(ImageNetInfo().label_names())}
    wnids = (data / "tiny-imagenet-200" / "wnids.txt").read_text(encoding="utf-8").split()
    images, labels = tiny.test_images[::5], tiny.test_labels[::5]
    right = torch.tensor([position[wnids[label]] for label in labels])
    print(f"Tiny-ImageNet, {len(labels):,} validation images stored at {images.shape[-1]}x{images.shape[-1]}\n")
    print(f"| size | {' | '.join(f'top-1, top-5 ({name})' for name in NORMALISATIONS)} |\n|--:|--:|--:|")
    for size in sizes:
        cells = []
        for mean, std in NORMALISATIONS.values():
            x = features(backbone_at(size, mean, std), images)
            best = linear(x, classifier["classifier.weight"], classifier["classifier.bias"]).topk(5).indices
            hits = best == right.unsqueeze(1)
            cells.append(f"{100 * hits[:, 0].float().mean():.1f}, {100 * hits.any(1).float().mean():.1f}")
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


def print_features(key: str, data: Path, sizes: list[int]) -> None:
    stream = dataset_of(key, data)
    train, test = (torch.from_numpy(np.array(y)) for y in (stream.train_labels, stream.test_labels))
    print(f"\n{key}\n\n| size | class means | ridge | forward, ms an image | training step, ms an image |")
    print("|--:|--:|--:|--:|--:|")
    for size in sizes:
        backbone = backbone_at(size, *NORMALISATIONS["0.5, 0.5"])
        x, z = (features(backbone, images) for images in (stream.train_images, stream.test_images))
        forward, step = costs(backbone, stream.train_images[:BATCH])
        accuracies = f"{class_means(x, train, z, test):.1f} | {ridge(x, train, z, test):.1f}"
        print(f"| {size} | {accuracies} | {1e3 * forward:.1f} | {1e3 * step:.1f} |", flush=True)


def class_means(x: Tensor, labels: Tensor, z: Tensor, test: Tensor) -> float:
    means = torch.stack([x[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return percent(normalize(z) @ normalize(means).T, test)


def ridge(x: Tensor, labels: Tensor, z: Tensor, test: Tensor) -> float:
    inputs, tests = (torch.nn.functional.pad(part.double(), (0, 1), value=1.0) for part in (x, z))
    gram, targets = inputs.T @ inputs, inputs.T @ one_hot(labels).double()
    eye = torch.eye(len(gram), dtype=torch.float64)
    return max(percent(tests @ torch.linalg.solve(gram + 10.0**k * eye, targets), test) for k in range(1, 5))


def percent(scores: Tensor, labels: Tensor) -> float:
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def costs(backbone: Backbone, images: np.ndarray, repeats: int = 5) -> tuple[float, float]:
    """Seconds of processor time an image, forward and for a training step of LoRA; the least of several."""
    x = torch.from_numpy(np.array(images))
    head = torch.zeros(10, backbone.dim, requires_grad=True)
    adapter = backbone.adapter(backbone.pretrained, "AB", 0)
    labels, seconds = torch.arange(len(x)) % 10, []
    for _ in range(repeats):
        began = time.process_time()
        features(backbone, images)
        between = time.process_time()
        cross_entropy(linear(backbone.features(adapter.weights(), x), head), labels).backward()
        seconds.append((between - began, time.process_time() - between))
    forward, step = (min(each) / len(x) for each in zip(*seconds, strict=True))
    return forward, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sizes", default="32,64,96,128")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(size) for size in options.sizes.split(",")]
    print_class_accuracy(options.data, sizes)
    for key in STREAMS:
        print_features(key, options.data, sizes)


if __name__ == "__main__":
    main()
