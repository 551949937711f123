"use strict";
// Plots by layer: each of one measure, all of them filtered by one field.

const FIRST_LAYERS = 24;

const beforeAfter = () => legend(["before", "before"], ["after", "after"]);

/**
 * Measures of a layer.
 *
 * value(state): the number at one end of the run; draw: how rows are drawn; same: words where the
 * number is one and the same everywhere; rank: rows by size, or in graph order.
 */
const MEASURES = [
  {
    id: "size",
    title: "Size by layer",
    note: "Bytes that the file holds for each layer, with its bias and scales; largest first.",
    value: (state) => state.bytes,
    text: bytesText,
    isRanked: true,
    draw: barRows,
    change: changeText,
  },
  {
    id: "bits",
    title: "Bits by layer",
    note: "Bits in which one weight is stored.",
    value: (state) => state.bits,
    text: (value) => (isKnown(value) ? `${value} bit` : UNKNOWN),
    x: { type: "log", base: 2, domain: [1, 32], ticks: [1, 2, 4, 8, 16, 32], tickFormat: "d" },
    draw: dotRows,
  },
  {
    id: "sparsity",
    title: "Sparsity by layer",
    note: "Share of the weights that are exactly zero.",
    value: (state) => state.sparsity,
    text: percentText,
    x: { domain: [0, 1], tickFormat: (value) => `${Math.round(100 * value)} %` },
    draw: dotRows,
  },
  {
    id: "channels",
    title: "Channels kept by layer",
    note: "Output channels of each layer.",
    value: (state, row) => channels(state, row.op),
    text: countText,
    onlyChanged: true,
    draw: barRows,
    change: (before, after) => (before && isKnown(after) ? `${Math.round((100 * after) / before)} % kept` : ""),
  },
];

/** Output channels of a weight: axis 0 of convolutions, the last of a matrix. */
function channels(state, op) {
  const shape = state.shape;
  if (!shape || shape.length < 2) return null;
  if (op === "ConvTranspose") return shape[1];
  return op.includes("Conv") || op === "Gemm" ? shape[0] : shape[shape.length - 1];
}

/** The section of layers; null where the account has none. */
function layersSection(account) {
  const layers = account.layers;
  if (!Array.isArray(layers) || !layers.length || !("before" in layers[0])) return null;
  const figures = [];
  const remarks = [];
  const state = { words: "", all: false };
  for (const measure of MEASURES) {
    const rows = measuredRows(layers, measure);
    const remark = sameEverywhere(rows, measure);
    if (remark) remarks.push(remark);
    else figures.push(measureFigure(measure, rows, state));
  }
  if (account.loss?.length) figures.push(lossFigure(account, state));
  else remarks.push("Loss by layer was not measured: --explain-loss does, where the model is run.");
  const histograms = histogramFigure(layers, state);
  if (histograms) figures.push(histograms);
  const redraw = () => figures.forEach((figure) => figure.redraw());
  const filter = filterField("Filter layers by name or operator", (words) => {
    state.words = words;
    redraw();
  });
  const all = el("button", { type: "button", class: "more" }, `Show all ${layers.length} layers`);
  all.addEventListener("click", () => {
    state.all = true;
    all.hidden = true;
    redraw();
  });
  all.hidden = layers.length <= FIRST_LAYERS;
  return section(
    "layers",
    "Layers",
    el("div", { class: "controls" }, filter, all, beforeAfter()),
    ...remarks.map((remark) => el("p", { class: "muted" }, remark)),
    el("div", { class: "figures" }, ...figures),
  );
}

/** Rows of a measure: name, both numbers, and the change. */
function measuredRows(layers, measure) {
  const rows = layers.map((layer) => {
    const before = layer.before ? measure.value(layer.before, layer) : null;
    const after = layer.after ? measure.value(layer.after, layer) : null;
    const change = measure.change ? measure.change(before, after) : "";
    return { name: layer.layer, op: layer.op, before, after, change };
  });
  const known = rows.filter((row) => isKnown(row.before) || isKnown(row.after));
  const size = (row) => Math.max(row.before ?? 0, row.after ?? 0);
  if (measure.isRanked) known.sort((a, b) => size(b) - size(a));
  return known;
}

/** A sentence in place of a plot whose rows all show the same; null where they do not. */
function sameEverywhere(rows, measure) {
  if (!rows.length) return `${measure.title}: not known.`;
  if (measure.onlyChanged && rows.every((row) => row.before === row.after)) {
    return `${measure.title}: every layer kept all of its channels.`;
  }
  const values = new Set(rows.flatMap((row) => [row.before, row.after]).filter(isKnown));
  if (values.size > 1 || measure.isRanked) return null;
  return `${measure.title}: ${measure.text([...values][0])} in every layer, before and after.`;
}

/** Rows that the filter leaves, the first of them unless all are asked for. */
function visible(rows, state) {
  const found = rows.filter((row) => `${row.name} ${row.op}`.toLowerCase().includes(state.words));
  return state.all || state.words ? found : found.slice(0, FIRST_LAYERS);
}

function measureFigure(measure, rows, state) {
  return plotFigure({
    title: measure.title,
    note: measure.note,
    draw: (width) => {
      const shown = visible(rows, state);
      return shown.length ? measure.draw(shown, width, measure) : null;
    },
    table: dataTable(
      [
        { title: "Layer", key: "name", wide: true },
        { title: "Operator", key: "op" },
        { title: "Before", key: "before", text: measure.text, number: true },
        { title: "After", key: "after", text: measure.text, number: true },
        ...(measure.change ? [{ title: "Change", key: "change", number: true }] : []),
      ],
      rows,
      { caption: measure.title },
    ),
  });
}

/** Loss of each layer: by its weights, by its activations, and with all that came before it. */
function lossFigure(account, state) {
  const names = new Map(account.layers.map((layer) => [layer.node, layer.layer]));
  const passes = new Set(account.loss.map((loss) => loss.pass));
  const nameOf = (loss) => {
    const name = names.get(loss.layer) ?? loss.layer;
    return passes.size > 1 ? `${name}: ${loss.pass}` : name;
  };
  const rows = account.loss.map((loss) => ({
    ...loss,
    name: nameOf(loss),
    weights: loss.weight_sqnr_db,
    activations: loss.activation_sqnr_db,
    total: loss.sqnr_db,
  }));
  return plotFigure({
    title: "Loss by layer",
    note:
      "Signal to noise of each layer's output, in dB: further left is worse. Worst layers first.",
    controls: legend(
      ["circle", "by its weights alone"],
      ["triangle", "by its input alone"],
      ["tick", "with all layers before it"],
    ),
    draw: (width) => lossRows(visible(rows, state), width),
    table: dataTable(
      [
        { title: "Layer", key: "name", wide: true },
        { title: "Operator", key: "op" },
        { title: "Pass", key: "pass" },
        { title: "Weights", key: "weights", text: decibelText, number: true },
        { title: "Activations", key: "activations", text: decibelText, number: true },
        { title: "With all before", key: "total", text: decibelText, number: true },
      ],
      rows,
      { caption: "Loss by layer" },
    ),
  });
}

function lossRows(rows, width) {
  if (!rows.length) return null;
  const indices = d3.range(rows.length);
  const known = (key) => indices.filter((i) => isKnown(rows[i][key]));
  const least = (i) => d3.min([rows[i].weights, rows[i].activations, rows[i].total].filter(isKnown)) ?? 0;
  const words = (i) =>
    `${rows[i].name} (${rows[i].pass})\nweights ${decibelText(rows[i].weights)}\n` +
    `activations ${decibelText(rows[i].activations)}\nwith all before ${decibelText(rows[i].total)}`;
  return rowPlot(rows, width, {
    right: 24,
    x: { nice: true, tickFormat: (value) => `${value} dB` },
    marks: [
      Plot.tickX(known("total"), { x: (i) => rows[i].total, y: (i) => i, stroke: "var(--ink)", strokeWidth: 2, insetTop: 3, insetBottom: 3 }),
      Plot.dot(known("weights"), { x: (i) => rows[i].weights, y: (i) => i, r: 4.5, fill: "var(--after)" }),
      Plot.dot(known("activations"), { x: (i) => rows[i].activations, y: (i) => i, r: 5, symbol: "triangle", fill: "var(--surface)", stroke: "var(--third)", strokeWidth: 2 }),
      Plot.tip(indices, Plot.pointerY({ x: least, y: (i) => i, title: words, ...TIP })),
    ],
  });
}

const FIRST_HISTOGRAMS = 12;

/** Small histograms of the weights of each layer, before and after. */
function histogramFigure(layers, state) {
  const rows = layers
    .filter((layer) => layer.before?.histogram || layer.after?.histogram)
    .map((layer) => ({ ...layer, name: layer.layer }));
  if (!rows.length) return null;
  const figure = plotFigure({
    title: "Weights",
    note:
      "Histograms of the weights that are not zero: how often each value stands. The line is before, " +
      "the area after; both share one scale in a layer.",
    controls: legend(["line", "before"], ["area", "after"]),
    draw: (width) => {
      const found = visible(rows, state);
      const shown = state.all ? found : found.slice(0, FIRST_HISTOGRAMS);
      const columns = Math.max(Math.floor(width / 260), 1);
      const each = Math.floor((width - 16 * (columns - 1)) / columns);
      return el("div", { class: "histograms" }, ...shown.map((row) => histogram(row, each)));
    },
    table: dataTable(
      [
        { title: "Layer", key: "name", wide: true },
        { title: "Weights", value: (row) => (row.before ?? row.after).elements, text: countText, number: true },
        { title: "Largest before", value: (row) => row.before?.histogram?.high, text: digits, number: true },
        { title: "Largest after", value: (row) => row.after?.histogram?.high, text: digits, number: true },
        { title: "Zeros before", value: (row) => row.before?.sparsity, text: percentText, number: true },
        { title: "Zeros after", value: (row) => row.after?.sparsity, text: percentText, number: true },
      ],
      rows,
      { caption: "Weights by layer" },
    ),
  });
  figure.classList.add("whole");
  return figure;
}

/** Bins of a histogram as shares of all weights for each unit of value. */
function densities(state) {
  if (!state?.histogram) return [];
  const { low, high, counts } = state.histogram;
  const width = (high - low) / counts.length;
  const nonzero = d3.sum(counts) || 1;
  const all = nonzero / Math.max(1 - (state.sparsity ?? 0), 1e-9);
  return counts.map((count, i) => ({
    x1: low + i * width,
    x2: low + (i + 1) * width,
    y: count / all / width,
  }));
}

function histogram(row, width) {
  const before = densities(row.before);
  const after = densities(row.after);
  const zeros = row.after?.sparsity ?? row.before?.sparsity;
  const bits = row.after?.bits ? `${row.after.bits} bit, ` : "";
  const steps = before.flatMap((bin) => [
    { x: bin.x1, y: bin.y },
    { x: bin.x2, y: bin.y },
  ]);
  const plot = Plot.plot({
    width,
    height: 110,
    margin: 4,
    marginBottom: 22,
    style: PLOT_STYLE,
    x: { ticks: 3, label: null, tickFormat: digits },
    y: { axis: null },
    marks: [
      Plot.rectY(after, { x1: "x1", x2: "x2", y: "y", fill: "var(--after)", fillOpacity: 0.75, inset: 0 }),
      Plot.lineY(steps, { x: "x", y: "y", stroke: "var(--ink)", strokeWidth: 1 }),
      Plot.ruleY([0], { stroke: "var(--line)" }),
    ],
  });
  return el(
    "div",
    { class: "histogram" },
    el("p", { title: row.name }, shortened(row.name, Math.floor(width / 8))),
    plot,
    el("p", { class: "muted" }, `${bits}${percentText(zeros)} zeros`),
  );
}
