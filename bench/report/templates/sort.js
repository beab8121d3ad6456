"use strict";
const UNITS = { kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12 };

// "51.2 ± 0.8", "1.2 MB", "< 0.001" and "+3.1 to +4.0" sort by their first number.
function leadingNumber(text) {
  const found = /^[<>]?\s*([+\-\u2212]?[\d,]*\.?\d+(?:e[+-]?\d+)?)(?=$|[\s%±†‡°])(?:\s*([kMGT]B)\b)?/.exec(text);
  return found ? Number(found[1].replace("\u2212", "-").replaceAll(",", "")) * (UNITS[found[2]] ?? 1) : NaN;
}

const isEmpty = (text) => text === "" || text === "-";

// Numbers as numbers where a whole column is numbers, else as text; what is empty comes last either way.
function sorted(items, textOf, direction) {
  const keys = new Map(items.map((item) => [item, textOf(item)]));
  const numeric = [...keys.values()].every((text) => isEmpty(text) || !Number.isNaN(leadingNumber(text)));
  const compare = numeric
    ? (a, b) => leadingNumber(a) - leadingNumber(b)
    : (a, b) => a.localeCompare(b, "en", { numeric: true });
  return [...items].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    return isEmpty(a) - isEmpty(b) || (isEmpty(a) ? 0 : direction * compare(a, b));
  });
}

// Heads become buttons: ascending, descending, then the order that the table came in.
function sortableHeads(heads, onSort) {
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      const now = next === undefined ? "ascending" : next;
      if (now) head.setAttribute("aria-sort", now);
      onSort(column, { ascending: 1, descending: -1 }[now] ?? 0);
    });
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows];
  sortableHeads([...table.tHead.rows[0].cells], (column, direction) => {
    body.append(...(direction ? sorted(rows, (row) => row.cells[column].textContent.trim(), direction) : rows));
  });
}
