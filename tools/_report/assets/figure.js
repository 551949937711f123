"use strict";
// Plots with their table behind them, drawn anew where the page changes its width.

const PLOT_STYLE = {
  background: "transparent",
  color: "var(--ink)",
  fontFamily: "inherit",
  fontSize: "12px",
  overflow: "visible",
};

/**
 * A plot, with a heading, a note that says how to read it, and its table.
 *
 * draw(width): an element, or null where there is nothing to draw. table: an element. hasButtons:
 * marks of the plot answer to keyboard and pointer.
 */
function plotFigure({ title, note, draw, table, controls, hasButtons }) {
  // what is inside of an image cannot be reached
  const role = hasButtons ? "group" : "img";
  const place = el("div", { class: "plot", role, "aria-label": `${title}. ${note ?? ""}` });
  const figure = el(
    "figure",
    {},
    el("figcaption", {}, el("h3", {}, title), note ? el("p", { class: "muted" }, note) : null),
    controls ?? null,
    place,
    table ? el("details", {}, el("summary", {}, "Table"), table) : null,
  );
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(place.clientWidth);
    if (!width) return;
    drawn = width;
    const content = draw(width);
    place.replaceChildren(content ?? el("p", { class: "muted" }, "Nothing to show."));
  };
  new ResizeObserver(() => {
    if (Math.abs(place.clientWidth - drawn) > 4) redraw();
  }).observe(place);
  figure.redraw = redraw;
  return figure;
}

/** A key of marks: [class of the mark, words] each. */
function legend(...entries) {
  const items = entries.map(([kind, words]) =>
    el("span", {}, el("i", { class: `mark ${kind}`, "aria-hidden": "true" }), words),
  );
  return el("p", { class: "legend" }, ...items);
}

/** Numbers at an axis: without decimals that say nothing. */
const tickText = (text) => (value) => text(value).replace(/\.0+(?= |$)/, "");

const ROW = 22;

/** Room for names beside rows, and the characters that fit. */
function nameRoom(rows, width) {
  const longest = d3.max(rows, (row) => row.name.length) ?? 0;
  const pixels = Math.min(7 * longest + 14, width * 0.42);
  return { pixels, characters: Math.max(Math.floor((pixels - 14) / 7), 4) };
}

/** Options of a plot with one row for each of `rows`, by index, in their order. */
function rowPlot(rows, width, { marks, x, right = 64 }) {
  const room = nameRoom(rows, width);
  const name = (index) => shortened(rows[index].name, room.characters);
  return Plot.plot({
    width,
    height: rows.length * ROW + 46,
    marginLeft: room.pixels,
    marginRight: right,
    marginTop: 30,
    marginBottom: 8,
    style: PLOT_STYLE,
    x: { grid: true, axis: "top", label: null, ticks: Math.max(Math.floor(width / 140), 2), ...x },
    y: { type: "band", domain: d3.range(rows.length), padding: 0.12 },
    marks: [
      Plot.axisY({ label: null, tickSize: 0, tickFormat: name, fontSize: 12 }),
      ...marks,
    ],
  });
}

/** Bars before (wide, pale) and after (narrow, dark) with the change in words behind each row. */
function barRows(rows, width, { text, x = {} }) {
  const indices = d3.range(rows.length);
  const before = indices.filter((i) => isKnown(rows[i].before));
  const after = indices.filter((i) => isKnown(rows[i].after));
  const end = (i) => Math.max(rows[i].before ?? 0, rows[i].after ?? 0);
  const words = (i) => `${rows[i].name}\nbefore ${text(rows[i].before)}\nafter ${text(rows[i].after)}`;
  return rowPlot(rows, width, {
    x: { tickFormat: tickText(text), ...x },
    marks: [
      Plot.barX(before, {
        x: (i) => rows[i].before,
        y: (i) => i,
        fill: "var(--before)",
        stroke: "var(--before-line)",
      }),
      Plot.barX(after, {
        x: (i) => rows[i].after,
        y: (i) => i,
        fill: "var(--after)",
        insetTop: 5,
        insetBottom: 5,
      }),
      Plot.text(indices, {
        x: end,
        y: (i) => i,
        text: (i) => rows[i].change ?? "",
        textAnchor: "start",
        dx: 6,
        fill: "var(--muted)",
      }),
      Plot.tip(indices, Plot.pointerY({ x: end, y: (i) => i, title: words, ...TIP })),
    ],
  });
}

/** Dots before (hollow) and after (filled), joined where they differ. */
function dotRows(rows, width, { text, x = {} }) {
  const indices = d3.range(rows.length);
  const both = indices.filter((i) => isKnown(rows[i].before) && isKnown(rows[i].after));
  const known = (key) => indices.filter((i) => isKnown(rows[i][key]));
  const words = (i) => `${rows[i].name}\nbefore ${text(rows[i].before)}\nafter ${text(rows[i].after)}`;
  const end = (i) => rows[i].after ?? rows[i].before ?? 0;
  return rowPlot(rows, width, {
    right: 24,
    x: { tickFormat: tickText(text), ...x },
    marks: [
      Plot.ruleY(both, { x1: (i) => rows[i].before, x2: (i) => rows[i].after, y: (i) => i, stroke: "var(--before-line)", strokeWidth: 2 }),
      Plot.dot(known("before"), { x: (i) => rows[i].before, y: (i) => i, r: 5, fill: "var(--surface)", stroke: "var(--before-line)", strokeWidth: 2 }),
      Plot.dot(known("after"), { x: (i) => rows[i].after, y: (i) => i, r: 4, fill: "var(--after)" }),
      Plot.tip(indices, Plot.pointerY({ x: end, y: (i) => i, title: words, ...TIP })),
    ],
  });
}

const TIP = { fill: "var(--surface)", stroke: "var(--line)", fontSize: 12, lineWidth: 40 };
