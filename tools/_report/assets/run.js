"use strict";
// The page of a run: what was gained and lost, by layer, and everything that explains it.

function runPage(data) {
  const account = data.account;
  const about = account.model;
  const source = fileName(about.path) || about.name || "model";
  const target = fileName(account.output_path);
  const passes = account.passes ?? [];
  return {
    header: pageHeader(
      target ? `${source} → ${target}` : source,
      el("p", { class: "pipeline" }, el("code", {}, about.passes)),
      el("p", {}, summary(account)),
    ),
    sections: [
      section(
        "figures",
        "Figures",
        account.error ? errorNotice(account.error) : null,
        cards(runCards(account)),
        notice("warning", "What should be known", account.warnings ?? []),
        budgetTable(account),
      ),
      passesSection(passes),
      layersSection(account) ?? layersMissing(account),
      trainingSection(passes),
      tuneSection(account.tune),
      declinedSection(passes, data.advice),
      chosenSection(passes),
      largestSection(account.largest ?? []),
      timeSection(account),
      provenanceSection(account),
    ].filter(Boolean),
  };
}

/** One sentence: size, speed and accuracy. */
function summary(account) {
  const { input, output, latency, metric, drift } = account;
  const words = [];
  if (input?.bytes && output?.bytes) {
    const factor = input.bytes / output.bytes;
    words.push(factor >= 1 ? `${digits(factor)} times smaller` : `${digits(1 / factor)} times larger`);
  }
  if (latency) {
    const factor = 1 / latency.ratio;
    const isClose = Math.abs(latency.ratio - 1) < 0.03 || (latency.low <= 1 && latency.high >= 1);
    const sure = isClose ? "about as fast" : null;
    words.push(sure ?? (factor >= 1 ? `${digits(factor)} times as fast` : `${digits(latency.ratio)} times as slow`));
  }
  if (metric && isKnown(metric.after)) words.push(`${metric.name} ${metric.before?.toFixed(4) ?? UNKNOWN} → ${metric.after.toFixed(4)}`);
  else if (drift?.word) words.push(`outputs ${drift.word}`);
  return words.length ? `${words.join(", ")}.` : "";
}

function errorNotice(error) {
  return notice("error", `The run failed: ${error.where}`, [error.problem, `What to do: ${error.fix}`]);
}

function runCards(account) {
  const { input = {}, output = {}, hardware } = account;
  return [
    beforeAfterCard("Size", input.bytes, output.bytes, bytesText, [
      isKnown(output.zipped_bytes) ? `${bytesText(output.zipped_bytes)} in a zip archive` : "",
    ]),
    latencyCard("Latency", input.latency_ms, output.latency_ms, account.latency, hardware, account.latency_samples),
    isKnown(output.step_ms)
      ? latencyCard("Latency: one token", input.step_ms, output.step_ms, account.step_latency, hardware)
      : null,
    metricCard(account),
    driftCard(account.drift),
    kernelCard(account.passes ?? [], hardware),
    beforeAfterCard("MACs", input.macs, output.macs, shortText, ["multiply-accumulates of one run"]),
    beforeAfterCard("Parameters", input.params, output.params, shortText, [sparsityWords(output), bitsWords(output.bits)]),
    beforeAfterCard("Nodes", input.nodes, output.nodes, countText, []),
  ];
}

function latencyCard(title, before, after, ratio, hardware, samples) {
  if (!isKnown(after)) return card(title, "not measured", "", ["--no-bench was given, or the run did not come to it"], "unknown");
  const interval = ratio ? `${digits(ratio.ratio)} of before; 95 % interval ${digits(ratio.low)} to ${digits(ratio.high)}: ${ratio.verdict}` : "";
  const batch = isKnown(samples) ? `a run of ${countText(samples)} ${samples === 1 ? "sample" : "samples"}` : "";
  return card(title, millisecondsText(after), `before ${millisecondsText(before)}`, [batch, interval, hardware ? `on ${hardware.label}` : ""]);
}

function metricCard(account) {
  const metric = account.metric;
  if (!metric) return card("Accuracy", "not measured", "", ["--metric top1 --data D with labels measures it"], "unknown");
  const interval = metric.drop_95?.every(isKnown)
    ? `drop ${digits(metric.drop)}, 95 % interval ${metric.drop_95.map((value) => digits(value)).join(" to ")}`
    : `drop ${digits(metric.drop)}`;
  const rows = isKnown(metric.samples) ? `on ${countText(metric.samples)} labelled rows` : "";
  return card(`Accuracy: ${metric.name}`, isKnown(metric.after) ? metric.after.toFixed(4) : UNKNOWN, `before ${isKnown(metric.before) ? metric.before.toFixed(4) : UNKNOWN}`, [interval, rows]);
}

function driftCard(drift) {
  if (!drift) return card("Drift", "not measured", "", ["the model was not run"], "unknown");
  const figure = isKnown(drift.sqnr_db) ? decibelText(drift.sqnr_db) : "none";
  const agreement = isKnown(drift.agreement) ? `largest output alike in ${percentText(drift.agreement)}` : "";
  return card("Drift", figure, drift.word ?? "", [agreement, `cosine ${isKnown(drift.cosine) ? drift.cosine.toFixed(4) : UNKNOWN}`, `${countText(drift.samples)} samples of ${drift.on}`]);
}

/** Layers that ONNX Runtime runs on integers, as the last pass that counted them says. */
function kernelCard(passes, hardware) {
  const counted = passes.filter((pass) => isKnown(pass.stats?.int8_kernels));
  if (!counted.length) return null;
  const stats = counted[counted.length - 1].stats;
  const missed = stats.missed ? `${stats.missed} layers stored in integers run in float` : "none of the quantized layers missed";
  const saturation = hardware?.saturates ? "this CPU's 8-bit products saturate" : "";
  return card("Integer kernels", countText(stats.int8_kernels), stats.layers ? `of ${stats.layers} quantized layers` : "", [missed, saturation]);
}

function sparsityWords(figures) {
  if (!isKnown(figures.nonzero) || !figures.params) return "";
  return `${percentText(1 - figures.nonzero / figures.params)} are zero`;
}

function bitsWords(bits) {
  const entries = Object.entries(bits ?? {});
  if (!entries.length) return "";
  const weights = d3.sum(entries, ([width, count]) => width * count);
  const average = weights / d3.sum(entries, ([, count]) => count);
  return `${digits(average)} bits each on average`;
}

function budgetTable(account) {
  const rows = Object.entries(account.budgets ?? {}).map(([name, budget]) => ({ name: name.replaceAll("_", "-"), ...budget }));
  if (!rows.length) return null;
  const kept = (value) => ({ true: "✓ yes", false: "✕ no" })[value] ?? "not known";
  return dataTable(
    [
      { title: "Budget", key: "name" },
      { title: "Limit", key: "limit", text: digits, number: true },
      { title: "Measured", key: "value", text: digits, number: true },
      { title: "Kept", key: "kept", text: kept },
    ],
    rows,
    { caption: "Budgets" },
  );
}

function passesSection(passes) {
  if (!passes.length) return null;
  const drift = (pass) => (pass.drift ? (isKnown(pass.drift.sqnr_db) ? decibelText(pass.drift.sqnr_db) : "exact") : "not measured");
  const metric = passes.some((pass) => isKnown(pass.stats.metric))
    ? [{ title: "Metric", value: (pass) => pass.stats.metric, text: (value) => (isKnown(value) ? value.toFixed(4) : ""), number: true }]
    : [];
  const table = dataTable(
    [
      { title: "Pass", key: "text", cell: (pass) => el("code", {}, pass.text), wide: true },
      { title: "Changed", key: "changed", text: (value, pass) => `${value} ${pass.stats.unit ?? ""}`, number: true },
      { title: "SQNR after it", value: (pass) => pass.drift?.sqnr_db, text: (value, pass) => drift(pass), number: true },
      ...metric,
      { title: "Seconds", key: "seconds", text: (value) => value.toFixed(2), number: true },
      { title: "Declined", value: (pass) => pass.declined.length, text: (value) => (value ? countText(value) : ""), number: true },
    ],
    passes,
    { caption: "Passes in their order" },
  );
  const details = passes.map((pass) => statsDetails(pass));
  return section("passes", "Passes", table, ...details);
}

/** Figures that a pass gives of itself. */
function statsDetails(pass) {
  const skipped = new Set(["unit", "drift", "chosen", "metric"]);
  const facts = Object.entries(pass.stats)
    .filter(([key]) => !skipped.has(key))
    .map(([key, value]) => [key, typeof value === "number" ? (Number.isInteger(value) ? countText(value) : digits(value)) : String(value)]);
  if (!facts.length) return null;
  return el("details", {}, el("summary", {}, `Figures of ${pass.pass}`), factList(facts));
}

function layersMissing(account) {
  if (!account.passes?.length) return null;
  return section(
    "layers",
    "Layers",
    el("p", { class: "muted" }, "This account has no table of layers: sizes, bits, zeros and histograms by layer are there with --report or --layers."),
    account.loss?.length ? plainLossFigure(account) : null,
  );
}

const plainLossFigure = (account) => lossFigure({ ...account, layers: [] }, { words: "", all: false });

/** Curves of every pass that trained. */
function trainingSection(passes) {
  const figures = passes.flatMap((pass) => curvesOf(pass));
  return figures.length ? section("training", "Training", el("div", { class: "figures" }, ...figures)) : null;
}

const numbersIn = (text) => String(text ?? "").split(" ").filter(Boolean).map(Number);

function curvesOf(pass) {
  const kinds = [
    ["scores", "score on rows held out", 0],
    ["losses", "loss between checks", 1],
  ];
  return kinds.flatMap(([key, words, first]) => {
    const points = numbersIn(pass.stats[key]).map((value, i) => ({ check: i + first, value }));
    return points.length > 1 ? [curveFigure(`${pass.pass}: ${words}`, points)] : [];
  });
}

function curveFigure(title, points) {
  return plotFigure({
    title,
    note: "By check, from the start of the training to its end.",
    draw: (width) =>
      Plot.plot({
        width,
        height: 240,
        marginLeft: 56,
        style: PLOT_STYLE,
        x: { label: "check", interval: 1, ticks: d3.ticks(points[0].check, points[points.length - 1].check, 8).filter(Number.isInteger), tickFormat: "d" },
        y: { grid: true, label: null, tickFormat: digits },
        marks: [
          Plot.lineY(points, { x: "check", y: "value", stroke: "var(--after)", strokeWidth: 2 }),
          Plot.dot(points, { x: "check", y: "value", fill: "var(--after)", r: 3 }),
          Plot.tip(points, Plot.pointerX({ x: "check", y: "value", title: (p) => `check ${p.check}\n${digits(p.value)}`, ...TIP })),
        ],
      }),
    table: dataTable(
      [
        { title: "Check", key: "check", number: true },
        { title: "Value", key: "value", text: digits, number: true },
      ],
      points,
      { caption: title },
    ),
  });
}

const COSTS = [
  ["bytes", "size", bytesText],
  ["latency_ms", "latency", millisecondsText],
  ["macs", "MACs", shortText],
];

/** The front of a search: what each budget buys, and the recipe of each point. */
function tuneSection(tune) {
  if (!tune?.front?.length) return null;
  const front = tune.front;
  const costs = COSTS.filter(([key]) => front.some((point) => isKnown(point[key])));
  if (!costs.length) return null;
  let cost = costs[0];
  const shown = el("p", { class: "recipe", role: "status" }, "Choose a point to see its recipe.");
  const show = (point) => {
    const parts = COSTS.map(([key, , text]) => (isKnown(point[key]) ? text(point[key]) : null)).filter(Boolean);
    shown.replaceChildren(el("code", {}, point.recipe), ` ${parts.join(", ")}, metric ${digits(point.metric)}`);
  };
  const figure = plotFigure({
    title: "Front",
    note: "Each point is a recipe that no other one beats in both. The filled diamond is the one that was written.",
    controls: el("div", {}, costs.length > 1 ? choice("Against", costs.map(([key, words]) => [key, words]), (key) => {
      cost = costs.find(([each]) => each === key);
      figure.redraw();
    }) : null, legend(["circle", "point of the front"], ["diamond", "written"])),
    hasButtons: true,
    draw: (width) => frontPlot(front, tune.recipe, cost, width, show),
    table: dataTable(
      [
        { title: "Recipe", key: "recipe", cell: (point) => el("code", {}, point.recipe), wide: true },
        ...costs.map(([key, words, text]) => ({ title: words, key, text, number: true })),
        { title: "Metric", key: "metric", text: digits, number: true },
        ...(front.some((point) => isKnown(point.reason)) ? [{ title: "Not taken because", key: "reason", wide: true }] : []),
      ],
      front,
      { caption: "The front" },
    ),
  });
  figure.classList.add("whole");
  const facts = factList([
    ["Objective", tune.objective],
    ["Budget", budgetWords(tune.budget)],
    ["Recipe", tune.recipe ? el("code", {}, tune.recipe) : null],
    ["Trials", isKnown(tune.trials) ? countText(Array.isArray(tune.trials) ? tune.trials.length : tune.trials) : null],
    ["Seconds", isKnown(tune.seconds) ? secondsText(tune.seconds) : null],
  ]);
  return section("tune", "Search", facts, el("div", { class: "figures" }, figure), shown, rejectedTable(tune.rejected));
}

function budgetWords(budget) {
  if (!isKnown(budget)) return null;
  if (typeof budget !== "object") return String(budget);
  return Object.entries(budget).filter(([, value]) => isKnown(value)).map(([key, value]) => `${key.replaceAll("_", "-")} ${value}`).join(", ");
}

function rejectedTable(rejected) {
  if (!Array.isArray(rejected) || !rejected.length) return null;
  const rows = rejected.map((each) => (typeof each === "object" ? each : { recipe: String(each) }));
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const text = (value) => (isKnown(value) ? (typeof value === "object" ? JSON.stringify(value) : String(value)) : "");
  const columns = keys.map((key) => ({ title: key.replaceAll("_", " "), key, text, wide: key === "recipe" || key === "reason" }));
  return el("details", {}, el("summary", {}, `Rejected: ${rows.length}`), dataTable(columns, rows, { caption: "Rejected recipes" }));
}

function frontPlot(front, recipe, [key, words, text], width, show) {
  const points = front.filter((point) => isKnown(point[key]) && isKnown(point.metric));
  if (!points.length) return null;
  const ordered = d3.sort(points, (point) => point[key]);
  const plot = Plot.plot({
    width,
    height: 320,
    marginLeft: 56,
    marginRight: 24,
    style: PLOT_STYLE,
    x: { label: words, tickFormat: tickText(text), ticks: Math.max(Math.floor(width / 120), 2), grid: true, nice: true, inset: 8 },
    y: { label: "metric", tickFormat: digits, grid: true, nice: true, inset: 8 },
    marks: [
      Plot.lineY(ordered, { x: key, y: "metric", stroke: "var(--before-line)", curve: "step-after" }),
      Plot.dot(ordered, {
        x: key,
        y: "metric",
        r: 6,
        symbol: (point) => (point.recipe === recipe ? "diamond" : "circle"),
        fill: (point) => (point.recipe === recipe ? "var(--after)" : "var(--surface)"),
        stroke: "var(--after)",
        strokeWidth: 2,
        ariaLabel: (point) => `${point.recipe}: ${text(point[key])}, metric ${digits(point.metric)}`,
        sort: null,
      }),
      Plot.tip(ordered, Plot.pointer({ x: key, y: "metric", title: (point) => `${point.recipe}\n${text(point[key])}, metric ${digits(point.metric)}`, ...TIP })),
    ],
    symbol: { type: "identity" },
    color: { type: "identity" },
  });
  // points answer to keyboard and touch, too
  const marks = [...plot.querySelectorAll('g[aria-label="dot"] > *')];
  marks.forEach((mark, index) => {
    mark.setAttribute("tabindex", "0");
    mark.setAttribute("role", "button");
    for (const event of ["focus", "click"]) mark.addEventListener(event, () => show(ordered[index]));
  });
  return plot;
}

function chosenSection(passes) {
  const rows = passes.flatMap((pass) => (pass.stats.chosen ?? []).map((each) => ({ pass: pass.pass, ...each })));
  if (!rows.length) return null;
  return section(
    "chosen",
    "Chosen by the passes",
    dataTable(
      [
        { title: "Where", key: "where", wide: true },
        { title: "Pass", key: "pass" },
        { title: "Choice", key: "choice", wide: true },
        { title: "Reason", key: "reason", wide: true },
      ],
      rows,
      { caption: "What passes decided themselves", filter: "Filter by layer or choice", most: 30 },
    ),
  );
}

function largestSection(largest) {
  if (!largest.length) return null;
  return section(
    "largest",
    "Largest parts left",
    dataTable(
      [
        { title: "Tensor", key: "tensor", wide: true },
        { title: "Read by", key: "layer", wide: true },
        { title: "Bytes", key: "bytes", text: bytesText, number: true },
        { title: "Why", key: "why", wide: true },
        { title: "Shrunk by", key: "pass", cell: (row) => (row.pass ? el("code", {}, row.pass) : "") },
      ],
      largest,
      { caption: "The largest tensors of the result" },
    ),
  );
}

/** Steps of the run with those inside them, as rows. */
function stepRows(steps, depth = 0) {
  return (steps ?? []).flatMap((step) => [{ ...step, depth }, ...stepRows(step.steps, depth + 1)]);
}

function timeSection(account) {
  const outer = account.steps ?? [];
  if (!outer.length) return null;
  const rows = outer.map((step) => ({ name: step.step, before: null, after: step.seconds, change: secondsText(step.seconds) }));
  const figure = plotFigure({
    title: "Time by step",
    note: `Wall time of the run: ${secondsText(account.seconds)}; ${secondsText(account.cpu_seconds)} of CPU time.`,
    draw: (width) => barRows(rows, width, { text: digits }),
    table: dataTable(
      [
        { title: "Step", key: "step", text: (value, row) => `${"  ".repeat(row.depth)}${value}`, wide: true },
        { title: "Seconds", key: "seconds", text: (value) => value.toFixed(2), number: true },
        { title: "CPU seconds", key: "cpu_seconds", text: (value) => value.toFixed(2), number: true },
      ],
      stepRows(outer),
      { caption: "Steps of the run", most: 40 },
    ),
  });
  return section("time", "Time", el("div", { class: "figures" }, figure));
}

function provenanceSection(account) {
  const about = account.model;
  const opsets = Object.entries(about.opset ?? {}).map(([domain, version]) => `${domain} ${version}`).join(", ");
  const needs = account.requires;
  const files = (account.files ?? []).map((file) => [`sha256 of ${fileName(file.path)}`, el("code", {}, file.sha256)]);
  const facts = [
    ["Model", about.path ?? about.name],
    ["sha256 of it", about.sha256 ? el("code", {}, about.sha256) : null],
    ["Made by", about.producer],
    ["Opset, IR", `${opsets}, IR ${about.ir_version ?? UNKNOWN}`],
    ["Written to", account.output_path],
    ...files,
    ["Result needs", needs ? `ONNX Runtime ${needs.onnxruntime ?? UNKNOWN} or newer (${needs.because}), opset ${needs.opset}, IR ${needs.ir_version}` : null],
    ["Target", about.target],
    ["Seed", isKnown(about.seed) ? String(about.seed) : null],
    ...machineFacts(account),
  ];
  return section(
    "provenance",
    "Provenance",
    account.command
      ? el("div", {}, el("p", {}, "This line repeats the run:"), copyable(account.command))
      : el("p", { class: "muted" }, "The run was given an object of Python's: no line repeats it."),
    factList(facts),
    notice("note", "Changes that no pass made", about.changes ?? []),
  );
}
