"""How often a grid's words are read: protocols checked and spellings taken apart, in the planner and in the workers.

Prints the counts for the default grid of 120 cells; ``--suite`` names another. Measured, before cells crossed to the
workers as resolved objects: planner 46 protocols and 1,376 spellings; workers, in 12 trials, 480 and 4,692.

    python -m benchmarks.resolve [--suite rules] [--slots 2]
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from bench.common.errors import UserError
from bench.config import files
from bench.config.files import load_suite
from bench.config.schema import ProtocolConfig
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.plan.replayed import cell_from_json
from bench.plan.trials import pack
from bench.registry import Registry
from bench.registry.spelling import _parsed as parsed


class Counted:
    """What is read within a block, as a fresh process would."""

    def __enter__(self) -> Counted:
        """Forget what this process has read so far, and count."""
        files._PROTOCOLS.clear()
        parsed.cache_clear()
        self.protocols, self._validate, self._began = 0, ProtocolConfig.model_validate, time.perf_counter()
        ProtocolConfig.model_validate = self._counted  # type: ignore[method-assign]
        return self

    def _counted(self, *arguments: object, **options: object) -> ProtocolConfig:
        self.protocols += 1
        return self._validate(*arguments, **options)  # type: ignore[arg-type]

    def __exit__(self, *_: object) -> None:
        """Stop counting."""
        ProtocolConfig.model_validate = self._validate  # type: ignore[method-assign]
        self.spellings, self.seconds = parsed.cache_info().misses, time.perf_counter() - self._began


def told(cells: list[Cell]) -> int:
    """How many protocols cells have, equal ones counted once."""
    return len({json.dumps(cell.protocol.model_dump(mode="json"), sort_keys=True) for cell in cells})


@click.command()
@click.option("--suite", default="embedded", show_default=True)
@click.option("--slots", default=2, show_default=True, help="Trials that run at once.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("data"), show_default=True)
def main(suite: str, slots: int, data: Path) -> None:
    """Print the counts."""
    try:
        with Counted() as planner:
            cells, _ = expand(load_suite(suite), Registry.load(), data, [])
    except UserError as error:
        raise SystemExit(f"resolve: {error}") from None
    trials = [json.loads(json.dumps([cell.as_json() for cell in trial])) for trial in pack(cells, slots)]
    workers, distinct = [], 0
    for trial in trials:
        with Counted() as worker:
            registry = Registry.load(check_names=False)
            again = [cell_from_json(cell, registry) for cell in trial]
        workers.append(worker)
        distinct += told(again)
    print(f"{suite}: {len(cells)} cells, {told(cells)} distinct protocols")
    print(f"planner: {planner.protocols} protocols checked, {planner.spellings} spellings, {planner.seconds:.2f} s")
    checked, spellings, seconds = (sum(getattr(w, n) for w in workers) for n in ("protocols", "spellings", "seconds"))
    print(
        f"workers: {len(trials)} trials with {distinct} distinct protocols: {checked} checked, {spellings} spellings, "
        f"{seconds:.2f} s"
    )


if __name__ == "__main__":
    main()
