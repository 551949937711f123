"use strict";
// The page of `bench`: latencies side by side.

function benchPage(data) {
  const account = data.account;
  const rows = account.models.map((row, index) => ({ ...row, name: fileName(row.model), index }));
  const isTokens = rows.every((row) => row.step);
  const figures = [latencyFigure(isTokens ? "Latency: prefill" : "Latency", rows)];
  if (isTokens) figures.push(latencyFigure("Latency: one token", rows.map((row) => ({ ...row.step, name: row.name }))));
  figures.push(memoryFigure(rows));
  const on = `On ${account.hardware.label}, provider ${account.provider}, ${account.threads || "default"} threads.`;
  return {
    header: pageHeader(rows.map((row) => row.name).join(", "), el("p", {}, on)),
    sections: [
      section("figures", "Figures", cards(rows.map(benchCard)), el("div", { class: "figures" }, ...figures)),
      benchProvenance(account, rows),
    ],
  };
}

function benchProvenance(account, rows) {
  const models = rows.flatMap((row) => [
    [`Model ${row.index + 1}`, row.model],
    ["sha256 of it", row.sha256 ? el("code", {}, row.sha256) : null],
  ]);
  const line = account.command ? [el("p", {}, "This line repeats it:"), copyable(account.command)] : [];
  const facts = factList([...models, ["Seed", isKnown(account.seed) ? String(account.seed) : null], ...machineFacts(account)]);
  return section("provenance", "Provenance", ...line, facts);
}

function benchCard(row) {
  const ratio = row.index ? `${digits(row.ratio_to_first)} of the first` : "the first";
  const interval = row.index && isKnown(row.ratio_high) ? `95 % interval ${digits(row.ratio_low)} to ${digits(row.ratio_high)}` : "";
  return card(row.name, millisecondsText(row.median_ms), ratio, [interval, `peak memory ${bytesText(row.peak_memory_bytes)}`]);
}

function latencyFigure(title, rows) {
  return plotFigure({
    title,
    note: "From the fastest run to the 90th percentile (line), with the median (dot), in milliseconds.",
    draw: (width) => {
      const indices = d3.range(rows.length);
      return rowPlot(rows, width, {
        x: { domain: [0, d3.max(rows, (row) => row.p90_ms)], tickFormat: digits, nice: true },
        marks: [
          Plot.ruleY(indices, { x1: (i) => rows[i].min_ms, x2: (i) => rows[i].p90_ms, y: (i) => i, stroke: "var(--before-line)", strokeWidth: 3 }),
          Plot.dot(indices, { x: (i) => rows[i].median_ms, y: (i) => i, r: 5, fill: "var(--after)" }),
          Plot.text(indices, { x: (i) => rows[i].p90_ms, y: (i) => i, text: (i) => digits(rows[i].median_ms), textAnchor: "start", dx: 8, fill: "var(--muted)" }),
        ],
      });
    },
    table: dataTable(
      [
        { title: "Model", key: "name", wide: true },
        { title: "Median", key: "median_ms", text: millisecondsText, number: true },
        { title: "p90", key: "p90_ms", text: millisecondsText, number: true },
        { title: "Fastest", key: "min_ms", text: millisecondsText, number: true },
        { title: "Ratio to the first", key: "ratio_to_first", text: digits, number: true },
        { title: "95 %", value: (row) => row.ratio_low, text: (value, row) => `${digits(row.ratio_low)} to ${digits(row.ratio_high)}`, number: true },
        { title: "Runs", key: "runs", text: countText, number: true },
      ],
      rows,
      { caption: title },
    ),
  });
}

function memoryFigure(models) {
  const rows = models.map((row) => ({ name: row.name, before: null, after: row.peak_memory_bytes, change: bytesText(row.peak_memory_bytes) }));
  return plotFigure({
    title: "Peak memory",
    note: "Of a process of its own that runs one feed.",
    draw: (width) => barRows(rows, width, { text: bytesText }),
    table: dataTable(
      [
        { title: "Model", key: "name", wide: true },
        { title: "Peak memory", key: "after", text: bytesText, number: true },
      ],
      rows,
      { caption: "Peak memory" },
    ),
  });
}
