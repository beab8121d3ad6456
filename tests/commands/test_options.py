"""A command has the options that it reads, and no others."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from bench.cli import cli
from bench.commands.options import asked_suite
from bench.common.paths import DATASETS, ROOT
from bench.config.schema import DatasetConfig
from bench.execute.executors import kinds
from tests.helpers.options_read import unread

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
    function = inspect.unwrap(ALL[name].callback)
    parameters = inspect.signature(function).parameters
    rest = {p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD}
    options = {p.name for p in ALL[name].params} - OPTIONS_OF_ALL
    assert rest or options <= set(parameters), options - set(parameters)
    assert set(parameters) - rest <= options, set(parameters) - rest - options


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_read_by_the_function_behind_the_command(name: str) -> None:
    function = inspect.unwrap(ALL[name].callback)
    assert unread(function, {p.name for p in ALL[name].params} - OPTIONS_OF_ALL) == set()


def test_an_option_that_is_accepted_and_ignored_is_found() -> None:
    def command(data: str, quiet: bool, **options: str) -> str:
        """Says data, shard and rerun, and reads none of them."""
        return f"{options['seeds']} {quiet} {asked_suite(options)}"

    assert unread(command, {"data", "quiet", "seeds", "shard", "rerun", "tasks", "protocol"}) == {
        "data", "shard", "rerun",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "option"),
    [("plan", "shard"), ("landscape", "shard"), ("diff", "data"), ("diff", "plugins"), ("merge", "data"),
     ("check", "results"), ("import", "data"), ("text", "results"), ("cache prune", "plugins"), ("list", "results")],
)  # fmt: skip
def test_options_that_were_accepted_and_ignored_are_gone(name: str, option: str) -> None:
    assert option not in {parameter.name for parameter in ALL[name].params}


@pytest.mark.parametrize(
    ("name", "default"),
    [("run", "ray"), ("tune", "ray"), ("paper", "ray"), ("replay", "local"), ("landscape", "local")],
)
def test_commands_that_run_cells_take_every_executor(name: str, default: str) -> None:
    options = {parameter.name: parameter for parameter in ALL[name].params}
    assert list(options["executor"].type.choices) == kinds()
    assert options["executor"].default == default
    assert {"workers", "gpus_per_run"} <= set(options)


def test_the_makefiles_variables_are_options_of_the_commands_that_it_calls() -> None:
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    grid = re.search(r"^GRID *= *(.*)", makefile, re.M)[1]  # type: ignore[index]
    run = re.search(r"^RUN *= *(.*)", makefile, re.M)[1].replace("$(GRID)", grid)  # type: ignore[index]
    lines = re.findall(r"\$\(BIN\)/clmerge ([^\n]*)", makefile)
    assert {line.split()[0] for line in lines} == {"run", "plan", "tune", "report", "paper"}
    for line in lines:
        name = line.split()[0]
        text = line.replace("$(RUN)", run).replace("$(GRID)", grid)
        flags = {flag for parameter in ALL[name].params for flag in parameter.opts}
        mapped = re.findall(r"call flag,\w+,([\w-]+)", text)
        for option in [*mapped, *re.findall(r" --([a-z-]+)", text)]:
            assert f"--{option}" in flags, (name, option)
        for shared in ("results", "data"):  # RESULTS=... and DATA=... mean the same for every target
            assert shared in mapped or f"--{shared}" in text or "results/smoke" in text, (name, shared)


@pytest.mark.parametrize("origin", ["--plugins", "CLMERGE_PLUGINS"])
@pytest.mark.parametrize("place", [str(ROOT / "LICENSE"), os.devnull])
def test_a_plugin_that_is_no_python_file_is_one_line(origin: str, place: str) -> None:
    said = ["--plugins", place] if origin == "--plugins" else []
    runner = CliRunner(env={"CLMERGE_PLUGINS": "" if said else place})
    done = runner.invoke(cli, ["list", "rules", *said])
    assert done.exit_code == 2
    assert done.output == f"clmerge: {origin}: {place} is no Python file; name a folder of plugins or a .py file\n"


def test_a_plugin_folder_without_python_files_is_fine(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no plugin")
    assert CliRunner().invoke(cli, ["list", "rules", "--plugins", str(tmp_path)]).exit_code == 0


# ---- datasets of plugin folders ------------------------------------------------------------------------------------
@pytest.fixture(params=["--plugins", "CLMERGE_PLUGINS"])
def invoke_with_digits_copy(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Result]:
    """Runs a command that is told, in one of two ways, of a folder with the dataset ``digits_copy``."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "digits_copy.yaml").write_text((DATASETS / "digits.yaml").read_text())
    said = ["--plugins", str(folder)] if request.param == "--plugins" else []
    runner = CliRunner(env={"CLMERGE_PLUGINS": "" if said else str(folder)})
    return lambda command: runner.invoke(
        cli, [command, *said, "--dataset", "digits_copy", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    )


def test_text_takes_a_dataset_of_a_plugin_folder(
    invoke_with_digits_copy: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(
        "bench.model.clip_text.open_clip_encoder", lambda *_: (lambda texts: torch.ones(len(texts), 4), 100.0)
    )
    done = invoke_with_digits_copy("text")
    assert done.exit_code == 0, done.output
    assert "10 rows, 80 phrases a class" in done.output


def test_pretrain_takes_a_dataset_of_a_plugin_folder(
    invoke_with_digits_copy: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = []

    def pretrain(_: object, dataset: DatasetConfig, *__: object) -> dict[str, object]:
        datasets.append(dataset.key)
        return {"accuracy": 1.0, "seconds": 1.0, "parameters": 1, "sha256": "0"}

    monkeypatch.setattr("bench.run.pretrain.pretrain", pretrain)
    done = invoke_with_digits_copy("pretrain")
    assert done.exit_code == 0, done.output
    assert datasets == ["digits_copy"]
