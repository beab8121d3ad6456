"""The command in a process of its own, in a folder that is not the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def python(*arguments: str | Path, cwd: Path, path: list[Path]) -> subprocess.CompletedProcess[str]:
    """``python ...`` in ``cwd`` with these folders before all that is installed; nothing of the caller's is seen."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CLMERGE_")}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def clmerge(*arguments: str | Path, cwd: Path, path: list[Path]) -> str:
    """What ``clmerge ...`` prints; it has to end well."""
    done = python("-m", "bench", *arguments, cwd=cwd, path=path)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout
