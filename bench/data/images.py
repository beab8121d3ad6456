"""Images on the device where they fit, else read from their memory map batch by batch."""

from __future__ import annotations

import numpy as np
import torch

CPU_BUDGET = 2**30  #: bytes of one split that a CPU process copies; larger ones stay mapped, shared by all processes


class MappedImages:
    """uint8 (N, C, H, W) on disk, indexed like a tensor: ``images[index]`` is a batch on the device."""

    def __init__(self, array: np.ndarray, device: str) -> None:
        self.shape, self._array, self._device = torch.Size(array.shape), array, device

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        """(b, C, H, W) of (b,) indices."""
        batch = torch.from_numpy(self._array[index.cpu().numpy()])
        if self._device.startswith("cuda"):
            return batch.pin_memory().to(self._device, non_blocking=True)
        return batch


Images = torch.Tensor | MappedImages


def images_on(device: str, array: np.ndarray, cpu_budget: int = CPU_BUDGET) -> Images:
    """The images of one split: a tensor on the device where that takes no more than half of its free memory, on a CPU
    no more than ``cpu_budget`` bytes.
    """
    budget = torch.cuda.mem_get_info(device)[0] // 2 if device.startswith("cuda") else cpu_budget
    if array.nbytes > budget:
        return MappedImages(array, device)
    return torch.from_numpy(np.array(array)).to(device)
