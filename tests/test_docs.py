"""The README and docs/: their plugins run, their commands parse, their links lead somewhere, their tables are true."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from bench.cli import cli
from bench.commands.options import alternatives
from bench.common.errors import UserError
from bench.config.files import load_dataset_config, load_protocol, load_suite
from bench.config.schema import ProtocolConfig
from bench.data.dataset import availability, load_dataset
from bench.registry import Registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_PLUGINS = [ROOT / "README.md", ROOT / "docs" / "methods.md"]
METHODS, PROTOCOLS, DATASETS = (ROOT / "docs" / f"{name}.md" for name in ("methods", "protocols", "datasets"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELLS = ("sh", "bash", "console", "shell")


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def plugin_folder(page: Path, folder: Path) -> Path:
    """The page's Python blocks as plugin files."""
    folder.mkdir(exist_ok=True)
    for i, source in enumerate(blocks(page, "python")):
        (folder / f"{page.stem.lower()}_{i}.py").write_text(source, encoding="utf-8")
    return folder


# ---- plugins -------------------------------------------------------------------------------------------------------
def everything(registry: Registry, folder: Path) -> list[str]:
    """Spellings that use every name, rule and trainer that the folder's files add."""
    added = [key for key, source in registry.sources.items() if Path(source).parent == folder.resolve()]
    parts = {"method": "{}", "rule": "{}@merged", "trainer": "{}+last@previous"}
    return [parts[kind].format(name) for kind, name in added]


def run(tmp_path: Path, folder: Path, spellings: list[str]) -> tuple[dict[str, dict], str]:
    """Records by variant of a run on digits, two tasks of one epoch, in this process; and what was printed."""
    arguments = [
        "run", "--plugins", str(folder), "--results", str(tmp_path / "results"), "--data", str(tmp_path / "data"),
        "--executor", "local", "--datasets", "digits", "--tasks", "2", "--seeds", "1",
        "--protocol-set", "per_dataset.digits.train.epochs=1", "--methods", " ".join(spellings),
    ]  # fmt: skip
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    records = [json.loads(p.read_text()) for p in (tmp_path / "results" / "runs").glob("*/cell.json")]
    return {record["coordinates"]["variant"]: record for record in records}, result.output


@pytest.mark.parametrize("page", WITH_PLUGINS, ids=lambda p: p.name)
def test_plugins_on_the_page_run_to_a_record(tmp_path: Path, page: Path) -> None:
    if not blocks(page, "python"):
        pytest.skip("no Python on this page")
    folder = plugin_folder(page, tmp_path / "plugins")
    registry = Registry.load([folder])
    spellings = everything(registry, folder)
    assert spellings
    records, _ = run(tmp_path, folder, spellings)
    assert set(records) == {registry.resolve(spelling).variant for spelling in spellings}
    assert {record["status"] for record in records.values()} == {"done"}


def test_what_the_page_says_of_its_example_holds(tmp_path: Path) -> None:
    folder = plugin_folder(METHODS, tmp_path / "plugins")
    records, _ = run(tmp_path, folder, ["average_merged", "momentum", "momentum:beta=0", "two_teachers@merged"])
    average, momentum, still, teachers = (
        records[v]
        for v in (
            "plain+average@merged", "plain+momentum@merged", "plain+momentum@merged:beta=0",
            "plain+two_teachers@merged",
        )
    )  # fmt: skip
    assert still["digest"] == average["digest"] != momentum["digest"]
    assert momentum["totals"]["carried_bytes"] == 4 * 32768  # v: P numbers
    assert average["totals"]["carried_bytes"] == teachers["totals"]["carried_bytes"] == 0
    assert momentum["tasks"][1]["scalars"]["speed"] > 0
    assert 0 < teachers["tasks"][1]["scalars"]["share"] < 1
    assert teachers["totals"]["opt_steps"] == average["totals"]["opt_steps"] + 50  # merge_steps count


def test_the_session_on_the_page_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs" / "python.md", "python")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["outcome"].failed == {}
    assert {row["method"] for row in names["rows"]} == {"linear_probe", "ncm"}
    assert len(names["rows"]) == len(names["outcome"].done) == 4


def test_a_plugin_given_on_the_command_line_is_not_stale_in_the_table(tmp_path: Path) -> None:
    folder = plugin_folder(METHODS, tmp_path / "plugins")
    _, printed = run(tmp_path, folder, ["momentum"])
    assert "stale" not in printed


def test_an_entry_point_is_found_by_every_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs_example.py").write_text(blocks(METHODS, "python")[0], encoding="utf-8")
    about = tmp_path / "docs_example-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: docs-example\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[clmerge.plugins]\nmomentum = docs_example\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "momentum" in Registry.load().methods
    assert "momentum" in Registry.load().methods  # planning, running and the table each load one


def test_wrong_spellings_are_answered_as_printed(tmp_path: Path) -> None:
    registry = Registry.load([plugin_folder(METHODS, tmp_path)])
    rows = re.findall(r"^\| `([^`]+)` \| `(methods: [^`]+)` \|$", prose(METHODS), re.MULTILINE)
    assert len(rows) >= 5
    for spelling, message in rows:
        with pytest.raises(UserError) as told:
            registry.resolve(spelling)
        assert str(told.value) == message


def test_right_spellings_are_right(tmp_path: Path) -> None:
    registry = Registry.load([plugin_folder(METHODS, tmp_path)])
    table = prose(METHODS).split("| spelling | meaning |")[1].split("\n\n")[0]
    spellings = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(spellings) >= 5
    for spelling in spellings:
        registry.resolve(spelling, load_protocol("embedded").tuned)


# ---- configuration -------------------------------------------------------------------------------------------------
def test_the_dataset_on_the_page_can_be_prepared(tmp_path: Path) -> None:
    text, *own = blocks(DATASETS, "yaml")
    file = tmp_path / "digits_half.yaml"
    file.write_text(text, encoding="utf-8")
    dataset = load_dataset(load_dataset_config("digits_half", [tmp_path]), tmp_path)  # compares counts
    assert len(dataset.train_labels) == yaml.safe_load(text)["train"]
    for of_a_user in own:
        file.write_text(of_a_user, encoding="utf-8")
        assert "not found" in str(availability(load_dataset_config("digits_half", [tmp_path]), tmp_path))


def test_the_protocol_on_the_page_is_valid_and_has_the_shipped_weights(tmp_path: Path) -> None:
    (text,) = blocks(PROTOCOLS, "yaml")
    file = tmp_path / "my_protocol.yaml"
    file.write_text(text, encoding="utf-8")
    own, shipped = load_protocol(str(file)), load_protocol("embedded")
    assert own.backbone.options == shipped.backbone.options
    assert own.lora.rank == 2


def test_every_protocol_field_is_in_the_table() -> None:
    told = set(re.findall(r"`([\w.]+)`", prose(PROTOCOLS).split("## Fields")[1].split("##")[0]))
    internal = {"key", "variant_of"}
    for name, field in ProtocolConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        for key in inner or [None]:
            names = {f"{name}.{key}", f".{key}"} if key else {name}
            assert names & told or name in internal, f"{name}.{key} is not in docs/protocols.md"


# ---- commands ------------------------------------------------------------------------------------------------------
def commands(word: str) -> Iterator[tuple[str, list[str], bool]]:
    """(page, arguments, whether to be typed like that) of every such command in shell blocks and, where it may be a
    mention only, in inline code. Assignments before it are left out.
    """
    for page in PAGES:
        lines = [
            (line.strip().removeprefix("$ "), True)
            for block in blocks(page, *SHELLS)
            for line in block.replace("\\\n", " ").splitlines()
        ]
        lines += [(span, False) for span in re.findall(rf"`((?:\.venv/bin/)?{word} [^`\n]*)`", prose(page))]
        for line, whole in lines:
            for part in re.split(r"\s(?:\||&&|;|>)\s|#\s", line):
                words = shlex.split(part)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words.pop(0)
                if words and words[0].removeprefix(".venv/bin/") == word and "..." not in part:
                    yield page.name, words[1:], whole


def parsed(arguments: list[str]) -> click.Context | None:
    """The context of the subcommand, not run; None where help or the version is asked for."""
    words, command = list(arguments), cli
    while isinstance(command, click.Group):
        word = words.pop(0) if words else "--help"
        if word in ("--help", "-h", "--version"):
            return None
        if word not in command.list_commands(click.Context(command)):
            raise click.UsageError(f"no such command {word!r}")
        command = command.get_command(click.Context(command), word)
    try:
        return command.make_context("clmerge", words)
    except click.exceptions.Exit:
        return None


def test_clmerge_commands_parse_and_name_what_exists(tmp_path: Path) -> None:
    found = list(commands("clmerge"))
    assert len(found) >= 8
    own = {page.name: Registry.load() for page in PAGES}
    # Those pages alone hold plugins: to load a page is to run its code.
    own |= {page.name: Registry.load([plugin_folder(page, tmp_path / page.stem)]) for page in WITH_PLUGINS}
    keys = {p.stem for p in (ROOT / "datasets").glob("*.yaml")} | {"all", "digits_half"}
    for page, arguments, whole in found:
        try:
            context = parsed(arguments)
        except click.MissingParameter:
            assert not whole, f"{page}: clmerge {shlex.join(arguments)}: a required option is missing"
            continue
        except click.ClickException as error:
            pytest.fail(f"{page}: clmerge {shlex.join(arguments)}: {error.format_message()}")
        told = context.params if context else {}
        for name in re.split(r"[\s,]+", told.get("datasets") or "all"):
            assert Path(name).stem in keys, f"{page}: no dataset {name}"
        overrides = {k: values[0] for k, values in alternatives(told.get("settings") or ()).items()}
        tuned = load_protocol("embedded", overrides).tuned
        for spelling in re.split(r"\s+|,(?![\w.]+=)", told.get("methods") or "pm"):
            own[page].resolve(spelling, tuned, where=page)
        if told.get("suite"):
            load_suite(told["suite"])


def test_make_targets_and_variables_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\$\((?:call flag,|if \$\()([A-Z_]+)[,)]", makefile)) | {"PYTHON", "YES"}
    for page, words, _ in commands("make"):
        for word in words:
            name, equals, _ = word.partition("=")
            assert name in (variables if equals else targets), f"{page}: make has no {name}"


# ---- links ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", prose(file), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, f"{page.name}: {target}"
