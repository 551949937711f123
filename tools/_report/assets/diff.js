"use strict";
// The page of `diff`: what two models differ in.

function diffPage(data) {
  const { a, b, interface: ports, file, ops, nodes, weights } = data.account;
  const [before, after] = [a.figures, b.figures];
  return {
    header: pageHeader(
      `${fileName(a.path)} → ${fileName(b.path)}`,
      el("p", {}, `${countText(nodes.added.length)} nodes added, ${countText(nodes.removed.length)} removed, ${countText(nodes.changed.length)} changed, ${countText(nodes.same)} the same.`),
    ),
    sections: [
      section(
        "figures",
        "Figures",
        cards([
          beforeAfterCard("Size", before.bytes, after.bytes, bytesText, []),
          beforeAfterCard("Parameters", before.params, after.params, shortText, [sparsityOf(before, after)]),
          beforeAfterCard("Nodes", before.nodes, after.nodes, countText, []),
          beforeAfterCard("MACs", before.macs, after.macs, shortText, []),
        ]),
        notice("warning", "The interface differs", ports),
        notice("note", "Of the file", file),
      ),
      data.graph ? graphSection(data.graph) : null,
      nodesSection(nodes),
      weightsSection(weights),
      opsSection(ops),
      section("provenance", "Provenance", factList([["A", a.path], ["sha256 of A", el("code", {}, a.sha256)], ["B", b.path], ["sha256 of B", el("code", {}, b.sha256)]])),
    ].filter(Boolean),
  };
}

function sparsityOf(before, after) {
  const share = (figures) => (isKnown(figures.nonzero) && figures.params ? 1 - figures.nonzero / figures.params : null);
  const [first, second] = [share(before), share(after)];
  return isKnown(first) && isKnown(second) ? `zeros ${percentText(first)} → ${percentText(second)}` : "";
}

function nodesSection(nodes) {
  const rows = ["changed", "removed", "added"].flatMap((status) => nodes[status].map((node) => ({ ...node, status, words: node.changes.join("; ") })));
  if (!rows.length) return section("nodes", "Nodes", el("p", { class: "muted" }, "Both have the same nodes."));
  const table = dataTable(
    [
      { title: "Node", key: "layer", wide: true },
      { title: "", key: "status", text: (status) => `${STATUS[status].sign} ${status}` },
      { title: "What differs", key: "words", wide: true },
    ],
    rows,
    { caption: "Nodes that differ", filter: "Filter nodes", most: 30 },
  );
  return section("nodes", "Nodes", table);
}

function weightsSection(weights) {
  if (!weights.length) return section("weights", "Weights", el("p", { class: "muted" }, "No weight that both have differs."));
  const rows = weights.map((weight) => ({
    ...weight,
    name: weight.layer,
    before: null,
    after: weight.relative,
    change: isKnown(weight.relative) ? percentText(weight.relative) : "another shape",
  }));
  const figure = plotFigure({
    title: "Weights that differ",
    note: "Distance from the weight before, as a share of its norm; the farthest first.",
    draw: (width) => barRows(rows.slice(0, 24), width, { text: percentText }),
    table: dataTable(
      [
        { title: "Weight", key: "weight", wide: true },
        { title: "Layer", key: "layer", wide: true },
        { title: "Distance", key: "relative", text: percentText, number: true },
        { title: "Largest difference", key: "max_abs", text: digits, number: true },
        { title: "Elements that differ", key: "changed", text: percentText, number: true },
        { title: "Zeros", key: "zeros_b", text: (value, row) => `${percentText(row.zeros_a)} → ${percentText(value)}`, number: true },
        { title: "Shape", value: (row) => row.b.shape, text: (value, row) => pairText(shapeText(row.a.shape), shapeText(value)) },
        { title: "Type", value: (row) => row.b.dtype, text: (value, row) => pairText(row.a.dtype, value) },
      ],
      rows,
      { caption: "Weights that differ", filter: "Filter weights" },
    ),
  });
  return section("weights", "Weights", el("div", { class: "figures" }, figure));
}

const pairText = (first, second) => (first === second ? first : `${first} → ${second}`);

function opsSection(ops) {
  const rows = ops.map((each) => ({ name: each.op, before: each.a, after: each.b, change: each.a === each.b ? "" : `${each.b - each.a > 0 ? "+" : "−"}${Math.abs(each.b - each.a)}` }));
  const figure = plotFigure({
    title: "Operators",
    note: "Number of nodes of each operator.",
    controls: beforeAfter(),
    draw: (width) => barRows(rows.slice(0, 30), width, { text: shortText }),
    table: dataTable(
      [
        { title: "Operator", key: "name", wide: true },
        { title: "A", key: "before", text: countText, number: true },
        { title: "B", key: "after", text: countText, number: true },
        { title: "Change", key: "change", number: true },
      ],
      rows,
      { caption: "Operators" },
    ),
  });
  return section("operators", "Operators", el("div", { class: "figures" }, figure));
}
