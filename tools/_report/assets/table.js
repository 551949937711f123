"use strict";
// Tables that sort by any column, filter, and show their first rows until asked for all.

const FIRST_ROWS = 50;

/**
 * A table.
 *
 * columns: {title, key or value(row), text(value, row), number (aligned right), wide}.
 * options: caption; filter: a label, with which rows are searched; most: rows shown at first.
 */
function dataTable(columns, rows, options = {}) {
  const state = { words: "", column: null, descending: false, all: false };
  const most = options.most ?? FIRST_ROWS;
  const body = el("tbody");
  const more = el("button", { type: "button", class: "more" });
  const empty = el("p", { class: "muted", role: "status" });
  const headings = columns.map((column) => heading(column));
  const head = el("thead", {}, el("tr", {}, ...headings));
  const caption = options.caption ? el("caption", {}, options.caption) : null;
  // columns of prose stand below one another where the window is narrow
  const isProse = columns.filter((column) => column.wide).length > 2;
  const table = el("table", { class: isProse ? "prose" : null }, caption, head, body);

  function heading(column) {
    const button = el("button", { type: "button" }, column.title);
    const cell = el("th", { scope: "col", class: column.number ? "number" : null }, button);
    button.addEventListener("click", () => {
      const isSame = state.column === column;
      state.descending = isSame ? !state.descending : Boolean(column.number);
      state.column = column;
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      draw();
    });
    return cell;
  }

  const valueOf = (column, row) => (column.value ? column.value(row) : row[column.key]);

  function textOf(column, row) {
    const value = valueOf(column, row);
    if (column.text) return column.text(value, row);
    return isKnown(value) ? String(value) : "";
  }

  function chosen() {
    const found = rows.filter((row) => {
      if (!state.words) return true;
      const text = columns.map((column) => textOf(column, row)).join(" ");
      return text.toLowerCase().includes(state.words);
    });
    if (state.column) {
      const sign = state.descending ? -1 : 1;
      found.sort((a, b) => sign * compare(valueOf(state.column, a), valueOf(state.column, b)));
    }
    return found;
  }

  function draw() {
    const found = chosen();
    const shown = state.all ? found : found.slice(0, most);
    body.replaceChildren(...shown.map((row) => rowOf(row)));
    more.hidden = shown.length === found.length;
    more.textContent = `Show all ${found.length} rows`;
    empty.textContent = found.length ? "" : "Nothing matches.";
    empty.hidden = found.length > 0;
  }

  function rowOf(row) {
    const cells = columns.map((column, index) => {
      const content = column.cell ? column.cell(row) : textOf(column, row);
      const kind = [column.number ? "number" : "", column.wide ? "wide" : ""].join(" ").trim();
      if (index === 0) return el("th", { scope: "row", class: kind || null }, content);
      return el("td", { class: kind || null, "data-title": column.title }, content);
    });
    return el("tr", {}, ...cells);
  }

  more.addEventListener("click", () => {
    state.all = true;
    draw();
  });
  draw();
  const filter = options.filter
    ? filterField(options.filter, (words) => {
        state.words = words;
        draw();
      })
    : null;
  const scroll = el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": options.caption ?? "Table" },
    table,
  );
  return el("div", { class: "table" }, filter, scroll, empty, more);
}

/** Order of two values: numbers by size, others as text; the unknown last. */
function compare(a, b) {
  if (!isKnown(a) || !isKnown(b)) return Number(!isKnown(a)) - Number(!isKnown(b));
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
