"""What a number was measured on: machine, devices, package versions."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import version
from typing import Any

from bench.common.paths import ROOT


@cache
def environment() -> dict[str, Any]:
    """JSON-able description of this process's surroundings; names no host, user or folder."""
    import torch

    told: dict[str, Any] = {p: version(p) for p in ("torch", "timm", "peft", "numpy", "clmerge")}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return told | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit that is checked out, read from ``.git`` without running git."""
    try:
        head = (ROOT / ".git" / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:12]
        return (ROOT / ".git" / head.removeprefix("ref: ")).read_text().strip()[:12]
    except OSError:
        return None
