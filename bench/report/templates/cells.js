"use strict";
// The records are read when the list is opened, and drawn a hundred at a time.
document.getElementById("records").addEventListener("toggle", () => {
  const STEP = 100;
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list"), body = list.tBodies[0], more = document.getElementById("more");
  const filter = document.getElementById("filter"), found = document.getElementById("found");
  const status = document.getElementById("status"), statusColumn = data.heads.indexOf("Status");
  const text = (value) => (value === null ? "-" : typeof value === "number" ? Number.isInteger(value) ? String(value) : value.toFixed(2) : value);
  const words = new Map(data.cells.map((cell) => [cell, `${cell[0].map(text).join(" ")} t=${cell[0][1]} ${cell[1]}`.toLowerCase()]));
  let order = data.cells, matching = order, shown = 0;

  function element(name, content, className) {
    const made = document.createElement(name);
    if (content !== undefined) made.textContent = content;
    if (className) made.className = className;
    return made;
  }

  // protocol.train.epochs: one line a value; lists on one line.
  function flat(value, name) {
    if (value === null || typeof value !== "object" || Array.isArray(value)) return [[name, typeof value === "string" ? value : JSON.stringify(value)]];
    return Object.entries(value).flatMap(([key, inner]) => flat(inner, name ? `${name}.${key}` : key));
  }

  function record([, id, parts]) {
    const whole = { id, ...parts };
    for (const part of data.parts) if (part in parts) whole[part] = data.shared[parts[part]];
    const table = element("table"), rows = element("tbody");
    for (const pair of flat(whole, "")) {
      const row = element("tr");
      row.append(...pair.map((value) => element("td", value)));
      rows.append(row);
    }
    table.append(rows);
    return table;
  }

  function line(cell) {
    const row = element("tr"), opener = element("button", "Record");
    opener.type = "button";
    opener.setAttribute("aria-expanded", "false");
    opener.addEventListener("click", () => {
      const open = opener.getAttribute("aria-expanded") === "true";
      opener.setAttribute("aria-expanded", String(!open));
      if (open) return row.nextSibling.remove();
      const below = element("tr", undefined, "record"), place = element("td");
      place.colSpan = cell[0].length + 1;
      place.append(record(cell));
      below.append(place);
      row.after(below);
    });
    const first = element("td");
    first.append(opener);
    row.append(first, ...cell[0].map((value) => {
      const bad = ["failed", "damaged", "outdated"].includes(value);
      return element("td", text(value), typeof value === "number" ? "number" : bad ? "bad" : "");
    }));
    return row;
  }

  function draw() {
    body.append(...matching.slice(shown, shown + STEP).map(line));
    shown = Math.min(shown + STEP, matching.length);
    more.hidden = shown === matching.length;
    found.textContent = `${shown} of ${matching.length} shown`;
  }

  function again() {
    const asked = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = (cell) => !status.value || cell[0][statusColumn] === status.value;
    matching = order.filter((cell) => wanted(cell) && asked.every((word) => words.get(cell).includes(word)));
    body.replaceChildren();
    shown = 0;
    draw();
  }

  const heads = data.heads.map((name) => element("th", name));
  const top = element("tr");
  top.append(element("th"), ...heads);
  list.tHead.append(top);
  sortableHeads(heads, (column, direction) => {
    order = direction ? sorted(data.cells, (cell) => text(cell[0][column]), direction) : data.cells;
    again();
  });
  filter.addEventListener("input", again);
  status.addEventListener("input", again);
  more.addEventListener("click", draw);
  again();
}, { once: true });
