"""The page of a report: what it says, that it is safe and whole by itself, and that it works in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bench.records.record import Standing
from bench.report import gaps, page
from bench.report.build import build_report, write_report
from bench.report.rows import Row
from tests.helpers import fake_records as fake

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MACHINE = {"cpu": "Core <i9>", "cores": 8, "gpu": None, "torch": "2.6", "python": "3.11", "commit": "abc123"}


def written(folder: Path, records: list[dict[str, Any]], report: Path | None = None) -> str:
    """The page without figures, which take seconds."""
    cells = page.PageRecords()
    return page.html(build_report(fake.write(folder, records), report, seen=cells.add), cells, {"A figure": b"\x89PNG"})


def data_of(page: str) -> dict[str, Any]:
    (text,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    return dict(json.loads(text))


def of(stream_rows: list[dict[str, Any]], tmp_path: Path, **options: Any) -> dict[str, list[str]]:
    return build_report(fake.write(tmp_path, stream_rows), **options).gaps


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_summary_says_what_was_run_and_on_what(tmp_path: Path) -> None:
    records = [
        fake.record(m, s, dataset=d, environment=MACHINE, written="2026-03-01T00:00:00Z", counts=fake.flat(500, 5))
        for d in ("glyphs", "digits")
        for m in ("pm", "ewc")
        for s in range(3)
    ]
    records[0]["written"] = "2026-02-27T10:00:00Z"
    text = html.unescape(written(tmp_path, records))
    for said in (
        "12: 12 done",
        "glyphs, T = 5, protocol embedded: 2 methods, 3 repeats",
        "Core <i9>, 8 cores (12 cells)",
        "torch 2.6, python 3.11 (12 cells)",
        "abc123 (12 cells)",
        "2026-02-27 to 2026-03-01",
        # 2 streams x 2 methods x (10.5 + 11.5 + 12.5) s
        "138 s of training and merging",
    ):
        assert said in text, said
    assert "What is incomplete" not in text


def test_every_kind_of_incomplete_cell_is_said_on_the_page_and_in_markdown(tmp_path: Path) -> None:
    records = [fake.record(m, s) for m in ("pm", "ewc", "joint") for s in range(3)]
    records += [fake.record("trm", 0), fake.record("average", 0, n_tasks=10), fake.record("pm", 0, n_tasks=10)]
    records[0] |= {"status": "failed", "counts": [], "error": {"type": "RuntimeError", "message": "no memory"}}
    records[0].pop("counts_sha256")
    records[4]["counts"][-1][0][0] += 1  # edited by hand
    stale = {records[7]["id"]: Standing("stale")}
    (tmp_path / "runs" / "glyphs-T5-begun").mkdir(parents=True)
    files = {file.name: file for file in write_report(fake.write(tmp_path, records), tmp_path / "out", None, stale)}
    whole, markdown = html.unescape(files["index.html"].read_text()), files["table.md"].read_text().replace("\\", "")
    five, ten = "glyphs, T = 5, protocol embedded", "glyphs, T = 10, protocol embedded"
    for text in (whole, markdown):
        for said in (
            f"{five}: 1 (c0-r0) of pm",
            f"{five}: 1 (c1-r1) of joint°",
            f"{five}: 2 of 3 (c1-r1, c2-r2) of trm†",
            f"{five}: average",
            f"{ten}: ewc, joint°, trm†",
            f"{ten}: all 2 methods",
            "Damaged and not counted: glyphs-T5-embedded-test-ewc-c1-r1 (edited by hand",
            "glyphs-T5-begun",
            *(kind for kind in (gaps.FAILED, gaps.STALE, gaps.MISSING, gaps.NOT_RUN, gaps.SINGLE, gaps.BEGUN)),
        ):
            assert said in text, said
    assert "12: 9 done, 1 stale, 1 failed, 1 damaged" in whole
    assert '<td class="bad">failed 1/3</td>' in whole
    assert whole.count("data:image/png;base64,") == 1


def test_a_whole_grid_has_no_gaps(tmp_path: Path) -> None:
    assert of(fake.grid(3, ("glyphs", "digits"), ("pm", "ewc")), tmp_path) == {}


def test_a_method_of_another_protocol_is_not_missed(tmp_path: Path) -> None:
    both = [fake.record(m, s, protocol=p) for m, p in (("pm", "embedded"), ("ewc", "magmax")) for s in range(2)]
    assert of(both, tmp_path) == {}


def test_many_missing_repeats_are_counted_and_the_first_named() -> None:
    rows: list[Row] = [
        {"dataset": "d", "n_tasks": 5, "protocol": "p", "eval_split": "test", "label": label, "variant": label}
        | {"scenario": "class_incremental", "class_order_seed": s, "run_seed": s, "status": "done"}
        for label, n in (("a", 20), ("b", 2))
        for s in range(n)
    ]
    (line,) = gaps.incomplete(rows)[gaps.MISSING]
    assert line.startswith("d, T = 5, protocol p: 18 of 20 (c10-r10, c11-r11, ")
    assert line.endswith(" and 12 more) of b")


# --- safe and whole --------------------------------------------------------------------------------------------------


def test_what_records_say_is_text_and_never_markup(tmp_path: Path) -> None:
    evil = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    value = fake.record("pm", environment={"cpu": evil}, error={"message": evil})
    value["method"]["title"] = value["coordinates"]["variant"] = evil
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"title: {json.dumps(evil)}\ncaption: {json.dumps(evil)}\n")
    whole = written(tmp_path, [value], mine)
    assert "<script>document" not in whole
    assert "<img src=x" not in whole
    assert whole.count("<script") == whole.count("</script>") == 3
    (cell,) = data_of(whole)["cells"]
    assert cell[2]["error"]["message"] == evil


def test_the_page_needs_nothing_beside_it(tmp_path: Path) -> None:
    whole = written(tmp_path, fake.grid(2, methods=("pm", "ewc")))
    assert "default-src 'none'" in whole
    loaded = re.findall(
        r"""(?<!-)\b(?:src|href|url|@import)\s*[=( ]\s*["']?([^"'\s>)]+)""", whole.partition('<script id="data"')[0]
    )
    assert {address.partition(":")[0] for address in loaded if not address.startswith("#")} == {"data"}


def test_a_record_is_whole_again_from_its_shared_parts(tmp_path: Path) -> None:
    records = [fake.record(m, s, environment=MACHINE) for m in ("pm", "ewc") for s in range(4)]
    data = data_of(written(tmp_path, records))
    assert len(data["cells"]) == 8
    assert len(data["shared"]) == 3  # two methods and one machine
    by_id = {value["id"]: value for value in records}
    for columns, identity, told in data["cells"]:
        value = by_id[identity]
        assert data["shared"][told["method"]] == value["method"]
        assert data["shared"][told["environment"]] == MACHINE
        assert told["counts"] == value["counts"]
        assert columns[:3] == ["glyphs", 5, "embedded"]
        assert columns[5:8] == [value["coordinates"]["class_order_seed"], value["coordinates"]["run_seed"], "done"]


def test_gathered_fragments_are_kept_and_everything_else_is_escaped() -> None:
    whole = page.gathered("A < B", "<i>", {"One & two": "<table><tr><td>1</td></tr></table>"})
    assert "<h1>A &lt; B</h1>" in whole
    assert "<p>&lt;i&gt;</p>" in whole
    assert '<a href="#table-1">One &amp; two</a>' in whole
    assert "<td>1</td>" in whole.partition('id="table-1"')[2]


# --- in a browser ----------------------------------------------------------------------------------------------------

ASK = """
<script>
const click = (selector, i) => document.querySelectorAll(selector)[i].click();
const column = (table, i) => [...document.querySelectorAll(table + " > tbody > tr:not(.record)")].map((row) => row.cells[i].textContent);
setTimeout(async () => {
  const said = {};
  try { %s } catch (error) { said.error = String(error); }
  const pre = document.createElement("pre");
  pre.id = "said";
  pre.textContent = JSON.stringify(said);
  document.body.append(pre);
}, 100);
</script>
"""


def asked(page: str, script: str, tmp_path: Path) -> dict[str, Any]:
    """What the script leaves in ``said`` when it runs in a copy of the page, in a browser without a network."""
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    (tmp_path / "copy.html").write_text(page.replace("</body>", ASK % script + "</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [
        "--proxy-server=127.0.0.1:9",
        "--virtual-time-budget=5000",
        "--dump-dom",
        f"file://{tmp_path}/copy.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stdout[-2000:]
    said = json.loads(html.unescape(found[1]))
    assert "error" not in said
    return dict(said)


def test_columns_sort_as_numbers_and_come_back(tmp_path: Path) -> None:
    levels = {"pm": 95, "ewc": 600, "average": 1000, "trm": 70}  # tenths of a percent: as text, 100.0 is before 7.0
    records = [fake.record(m, s, n_tasks=2, counts=fake.flat(a)) for m, a in levels.items() for s in range(2)]
    records.append(fake.record("joint", 0, n_tasks=2, status="failed"))
    said = asked(
        written(tmp_path, records),
        """
        const heads = [...document.querySelectorAll("table.sortable thead th")];
        const a = heads.findIndex((head) => head.textContent === "A_last");
        said.before = column("table.sortable", 0);
        for (const name of ["up", "down", "again"]) {
          heads[a].querySelector("button").click();
          said[name] = column("table.sortable", a);
          said[name + "State"] = heads[a].getAttribute("aria-sort");
        }
        said.after = column("table.sortable", 0);
        heads[0].querySelector("button").click();
        said.names = column("table.sortable", 0);
        said.tag = document.activeElement.tagName;
        heads[0].querySelector("button").focus();
        said.focused = document.activeElement.tagName;
        said.keys = ["1.2 MB", "900 kB", "512 bytes", "< 0.001", "-1.5 ± 0.2", "+3.1 to 4", "1,200", "2d data", "pm"].map(leadingNumber);
        """,
        tmp_path,
    )
    assert [text.split()[0] for text in said["up"]] == ["7.0", "9.5", "60.0", "100.0", "-"]
    assert [text.split()[0] for text in said["down"]] == ["100.0", "60.0", "9.5", "7.0", "-"]
    assert (said["upState"], said["downState"], said["againState"]) == ("ascending", "descending", None)
    assert said["before"] == said["after"]
    assert said["names"] == ["average", "ewc", "joint°", "pm", "trm†"]
    assert said["focused"] == "BUTTON"
    assert said["keys"] == [1.2e6, 9e5, 512, 0.001, -1.5, 3.1, 1200, None, None]


def test_cells_filter_sort_and_open(tmp_path: Path) -> None:
    records = [fake.record(m, s, environment=MACHINE) for m in ("pm", "ewc") for s in range(60)]
    records.append(fake.record("trm", 0, status="failed", error={"message": "<b>no</b> memory"}))
    said = asked(
        written(tmp_path, records),
        """
        const wait = () => new Promise((done) => setTimeout(done, 50));
        said.closed = document.querySelectorAll("#list tbody tr").length;
        document.getElementById("records").open = true;
        await wait();
        said.first = column("#list", 0).length;
        said.told = document.getElementById("found").textContent;
        document.getElementById("more").click();
        said.all = column("#list", 0).length;
        said.moreHidden = document.getElementById("more").hidden;
        const filter = document.getElementById("filter");
        const ask = (text) => { filter.value = text; filter.dispatchEvent(new Event("input")); };
        ask("PM t=5");
        const order = [...document.querySelectorAll("#list th")].findIndex((head) => head.textContent === "Order");
        document.querySelectorAll("#list th")[order].querySelector("button").click();
        document.querySelectorAll("#list th")[order].querySelector("button").click();
        said.filtered = column("#list", order);
        ask("failed");
        said.failed = column("#list", order + 2);
        document.querySelector("#list td button").click();
        said.record = Object.fromEntries([...document.querySelectorAll("tr.record table tr")].map((row) => [...row.cells].map((cell) => cell.textContent)));
        said.bold = document.querySelectorAll("tr.record b").length;
        document.querySelector("#list td button").click();
        said.shut = document.querySelectorAll("tr.record").length;
        """,
        tmp_path,
    )
    assert (said["closed"], said["first"], said["all"], said["moreHidden"]) == (0, 100, 121, True)
    assert said["told"] == "100 of 121 shown"
    assert said["filtered"] == [str(seed) for seed in reversed(range(60))]
    assert said["failed"] == ["failed"]
    assert said["record"]["error.message"] == "<b>no</b> memory"
    assert said["record"]["method.title"] == "The trm rule"
    assert (said["bold"], said["shut"]) == (0, 0)
