"""The command line: its commands by name, in the order in which a person meets them."""

from __future__ import annotations

import importlib

import click

from bench import __version__

#: name: the file in commands/, and what it calls the command
COMMANDS = {
    "run": "run:run",
    "plan": "run:plan",
    "list": "list:list_",
    "results": "results:results",
    "report": "report:report",
    "verify": "verify:verify",
    "pretrain": "pretrain:pretrain",
    "cache": "cache:cache",
    "data": "data:data",
    "weights": "weights:weights",
    "text": "text:text",
    "replay": "replay:replay",
    "import": "import_:import_",
    "check": "check:check",
    "merge": "merge:merge",
    "tune": "tune:tune",
    "paper": "paper:paper",
    "landscape": "landscape:landscape",
    "diff": "diff:diff",
}


class _Group(click.Group):
    """Reads the file of a command when the command is asked for: neither torch nor Ray is imported to show help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        file, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"bench.commands.{file}"), attribute)
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="clmerge")
def cli() -> None:
    """Compare continual-learning-by-merging methods on one grid, under one protocol.

    \b
    Examples:
      clmerge run                                           the embedded default grid
      clmerge plan --datasets glyphs_xor --methods "pm average@merged" --seeds 5
      clmerge run  --datasets glyphs --tasks 5,10 --methods "pm pm:eps=0.3 perturb+average@previous"
      clmerge list methods
      clmerge results --csv results.csv
      clmerge report
    """


def main() -> None:
    """The console command."""
    cli()
