"""A command has the options that it reads, and no others."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.common.paths import ROOT

OPTIONS_OF_ALL = {"help", "debug"}


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


ALL = dict(commands())


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_a_parameter_of_the_function_behind_the_command(name: str) -> None:
    function = inspect.unwrap(ALL[name].callback)  # that each is read there is checked by ruff's ARG001
    parameters = inspect.signature(function).parameters
    rest = {p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD}
    options = {p.name for p in ALL[name].params} - OPTIONS_OF_ALL
    assert rest or options <= set(parameters), options - set(parameters)
    assert set(parameters) - rest <= options, set(parameters) - rest - options


@pytest.mark.parametrize(
    ("name", "option"),
    [("plan", "shard"), ("landscape", "shard"), ("diff", "data"), ("diff", "plugins"), ("merge", "data"),
     ("check", "results"), ("import", "data"), ("text", "results"), ("cache prune", "plugins"), ("list", "results")],
)  # fmt: skip
def test_options_that_were_accepted_and_ignored_are_gone(name: str, option: str) -> None:
    assert option not in {parameter.name for parameter in ALL[name].params}


def test_the_makefiles_variables_are_options_of_the_commands_that_it_calls() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    grid = re.search(r"^GRID *= *(.*)", makefile, re.M)[1]  # type: ignore[index]
    run = re.search(r"^RUN *= *(.*)", makefile, re.M)[1].replace("$(GRID)", grid)  # type: ignore[index]
    for line in re.findall(r"\$\(BIN\)/clmerge ([^\n]*)", makefile):
        name = line.split()[0]
        text = line.replace("$(RUN)", run).replace("$(GRID)", grid)
        flags = {flag for parameter in ALL[name].params for flag in parameter.opts}
        for option in re.findall(r"call flag,\w+,([\w-]+)", text):
            assert f"--{option}" in flags, (name, option)


def test_a_plugin_that_is_no_python_file_is_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["plan", "--plugins", str(ROOT / "LICENSE"), "--results", str(tmp_path)])
    assert done.exit_code == 2
    assert f"--plugins: {ROOT / 'LICENSE'} is no Python file; name a folder of plugins or a .py file" in done.output
