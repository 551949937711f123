"use strict";
// The page of `inspect`: the parts of a model, and its graph.

function inspectPage(data) {
  const account = data.account;
  const about = account.model;
  const figures = account.figures;
  const opsets = Object.entries(about.opset).map(([domain, version]) => `${domain} ${version}`).join(", ");
  return {
    header: pageHeader(
      fileName(about.path) || about.name || "model",
      el("p", { class: "muted" }, `opset ${opsets}, IR ${about.ir_version}, by ${about.producer ?? "unknown"}`),
    ),
    sections: [
      section(
        "figures",
        "Figures",
        cards([
          card("Size", bytesText(figures.bytes), ""),
          card("Parameters", shortText(figures.params), isKnown(account.sparsity) ? `${percentText(account.sparsity)} are zero` : ""),
          card("MACs", shortText(figures.macs), "of one run, symbolic sizes as 1"),
          card("Nodes", countText(figures.nodes), `${Object.keys(account.ops).length} operators`),
          account.hardware && account.saturation ? card("Weight pairs that may saturate", countText(account.saturation.offending_pairs), `of ${countText(account.saturation.pairs)}`) : null,
        ]),
        portTable(account),
      ),
      data.graph ? graphSection(data.graph) : null,
      operatorSection(account.ops),
      weightSection([...account.layers, ...account.others]),
      declinedSection(account.passes ?? [], data.advice),
      provenanceOfModel(account),
    ].filter(Boolean),
  };
}

function portTable(account) {
  const rows = [
    ...account.inputs.map((port) => ({ kind: "input", ...port })),
    ...account.outputs.map((port) => ({ kind: "output", ...port })),
  ];
  return dataTable(
    [
      { title: "Name", key: "name", wide: true },
      { title: "", key: "kind" },
      { title: "Type", key: "type" },
      { title: "Shape", key: "shape", text: shapeText },
    ],
    rows,
    { caption: "Inputs and outputs" },
  );
}

function operatorSection(ops) {
  const rows = Object.entries(ops).map(([name, number]) => ({ name, before: null, after: number, change: countText(number) }));
  const figure = plotFigure({
    title: "Operators",
    note: "Number of nodes of each, the most frequent first.",
    draw: (width) => barRows(rows.slice(0, 24), width, { text: shortText }),
    table: dataTable(
      [
        { title: "Operator", key: "name", wide: true },
        { title: "Nodes", key: "after", text: countText, number: true },
      ],
      rows,
      { caption: "Operators" },
    ),
  });
  return section("operators", "Operators", el("div", { class: "figures" }, figure));
}

function weightSection(weights) {
  if (!weights.length) return null;
  const ranked = d3.sort(weights, (weight) => -weight.bytes);
  const rows = ranked.map((weight) => ({ ...weight, before: null, after: weight.bytes, change: bytesText(weight.bytes) }));
  const figure = plotFigure({
    title: "Size by tensor",
    note: "The largest constants of the file.",
    draw: (width) => barRows(rows.slice(0, 24), width, { text: bytesText }),
    table: dataTable(
      [
        { title: "Tensor", key: "name", wide: true },
        { title: "Read by", key: "ops", text: (ops) => ops.join(", "), wide: true },
        { title: "Type", key: "dtype" },
        { title: "Shape", key: "shape", text: shapeText, number: true },
        { title: "Bytes", key: "bytes", text: bytesText, number: true },
        { title: "Zeros", key: "sparsity", text: percentText, number: true },
      ],
      rows,
      { caption: "Tensors by size", filter: "Filter tensors" },
    ),
  });
  return section("weights", "Weights", el("div", { class: "figures" }, figure));
}

function provenanceOfModel(account) {
  const needs = account.requires;
  return section(
    "provenance",
    "Provenance",
    factList([
      ["Path", account.model.path],
      ["Needs", needs ? `ONNX Runtime ${needs.onnxruntime ?? UNKNOWN} or newer (${needs.because})` : null],
      ...Object.entries(account.provenance).map(([key, value]) => [`onnx-opt: ${key}`, value]),
      ["This CPU", account.hardware?.label],
    ]),
  );
}
