"use strict";
// The page of `explain`: what two models look at, and whether it is the same.

function explainPage(data) {
  const account = data.account;
  const [first, second] = [fileName(account.a.path), fileName(account.b.path)];
  const { input, output } = account;
  const line = `${countText(account.samples)} samples by ${METHODS[account.method]}: input ${input.name} (${input.kind}), output ${output.name} (${output.form}).`;
  return {
    header: pageHeader(`What ${first} and ${second} look at`, el("p", {}, line)),
    sections: [
      section(
        "figures",
        "Figures",
        account.problem ? notice("error", "The agreement is too low", [account.problem]) : null,
        cards([
          agreementCard("Order of all parts", "spearman", digits, account),
          agreementCard("First 10 % in common", "topk", percentText, account),
          isKnown(account.same_class) ? card("Same class", percentText(account.same_class), "of the samples") : null,
        ]),
        notice("warning", "Warnings", account.warnings),
        el("div", { class: "figures" }, sampleFigure(account)),
      ),
      section("samples", "Samples", heatLegend(account), el("div", { class: "heats" }, ...account.shown.map((shown) => heatFigure(shown, account)))),
      section("provenance", "Provenance", factList([...explainFacts(account), ...machineFacts(account)])),
    ],
  };
}

const METHODS = { occlusion: "occlusion", lime: "LIME", shap: "Kernel SHAP", ig: "integrated gradients" };

function agreementCard(title, key, text, account) {
  const share = account.share[key];
  const words = isKnown(share) ? `${digits(share)} of the noise floor, ${text(account.noise_floor[key])}` : `noise floor ${text(account.noise_floor[key])}`;
  const note = key === "spearman" ? "Spearman's correlation of A and B, 1 at most." : "Of the parts that add most to the score.";
  return card(title, text(account.agreement[key]), words, [note]);
}

function explainFacts(account) {
  const { a, b } = account;
  return [
    ["A", a.path],
    ["sha256 of A", el("code", {}, a.sha256)],
    ["B", b.path],
    ["sha256 of B", el("code", {}, b.sha256)],
    ["Engine", account.engine],
    ["Variants of a sample", account.runs ? countText(account.runs) : "one for each window"],
    ["Seed", String(account.seed)],
    ["Time", secondsText(account.seconds)],
  ];
}

function sampleFigure(account) {
  const rows = account.by_sample
    .map((each) => ({
      ...each,
      name: each.class === null ? `${each.sample}` : `${each.sample}: class ${each.class}`,
      before: each.noise_floor.spearman,
      after: each.agreement.spearman,
    }))
    .sort((one, other) => one.after - other.after);
  const low = Math.min(0, ...rows.flatMap((row) => [row.before, row.after]));
  return plotFigure({
    title: "Agreement of each sample",
    note: "Spearman's correlation, the least first: A with B (filled), and A with itself, explained twice (hollow).",
    draw: (width) => dotRows(rows.slice(0, 24), width, { text: digits, x: { domain: [low, 1] } }),
    table: dataTable(
      [
        { title: "Sample", key: "sample", number: true },
        { title: "Class of A", key: "class", number: true },
        { title: "Class of B", key: "class_b", number: true },
        { title: "Score of A", key: "score_a", text: digits, number: true },
        { title: "Score of B", key: "score_b", text: digits, number: true },
        { title: "Spearman", key: "after", text: digits, number: true },
        { title: "Noise floor", key: "before", text: digits, number: true },
        { title: "First 10 %", value: (row) => row.agreement.topk, text: percentText, number: true },
        { title: "Its noise floor", value: (row) => row.noise_floor.topk, text: percentText, number: true },
      ],
      rows,
      { caption: "Agreement of each sample" },
    ),
  });
}

function heatLegend(account) {
  const words = account.input.kind === "image" ? "Pictures are grey below the colours." : "";
  const shown = `${countText(account.shown.length)} of ${countText(account.samples)} samples, those that agree least first. ${words}`;
  return el("div", {}, el("p", { class: "muted" }, shown), legend(["adds", "adds to the score"], ["takes", "takes from it"]));
}

const VIEWS = [
  ["a", "A"],
  ["b", "B"],
  ["again", "A again, other seeds"],
];

/** One sample, with the heat of both models side by side. */
function heatFigure(shown, account) {
  const each = account.by_sample.find((row) => row.sample === shown.sample);
  const classes = each.class === null ? "" : `, class ${each.class}${each.class_b === each.class ? "" : ` (B chooses ${each.class_b})`}`;
  const title = `Sample ${shown.sample}${classes}`;
  const words = `Agreement ${digits(each.agreement.spearman)}, noise floor ${digits(each.noise_floor.spearman)}.`;
  const content = shown.pixels ? pictures(shown, title) : texts(shown, title);
  return el(
    "figure",
    { class: shown.pixels ? "heat" : "heat whole" },
    el("figcaption", {}, el("h3", {}, title), el("p", { class: "muted" }, words)),
    content,
    shown.texts ? el("details", {}, el("summary", {}, "Table"), heatTable(shown)) : null,
  );
}

/** The picture, and over it the heat of each explanation. */
function pictures(shown, title) {
  const bytes = Uint8Array.from(atob(shown.pixels), (character) => character.charCodeAt(0));
  const plain = view("The sample", canvasOf(shown, bytes, null), title);
  const heats = VIEWS.map(([key, name]) => view(name, canvasOf(shown, bytes, shown.heat[key]), title));
  return el("div", { class: "views" }, plain, ...heats);
}

function view(name, canvas, title) {
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${title}: ${name}`);
  return el("div", {}, canvas, el("p", { class: "muted" }, name));
}

const ADDS = [230, 97, 1];
const TAKES = [70, 90, 220];

/** Pixels of a sample; under heat they are grey and pale, so that its colours show. */
function canvasOf(shown, bytes, heat) {
  const [height, width] = shown.size;
  const [rows, columns] = shown.cells;
  const canvas = el("canvas", { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let index = 0; index < width * height; index += 1) {
    let colour = [...bytes.subarray(3 * index, 3 * index + 3)];
    if (heat) {
      const row = Math.floor((Math.floor(index / width) * rows) / height);
      const column = Math.floor(((index % width) * columns) / width);
      const value = heat[row * columns + column];
      const grey = 55 + (0.6 * (colour[0] + colour[1] + colour[2])) / 3;
      const share = 0.85 * Math.min(Math.abs(value), 1);
      const target = value > 0 ? ADDS : TAKES;
      colour = target.map((each) => each * share + grey * (1 - share));
    }
    image.data.set([...colour, 255], 4 * index);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** The texts of a sample, each on the colour of its heat. */
function texts(shown, title) {
  const rows = VIEWS.map(([key, name]) => {
    const marks = shown.texts.map((text, index) => {
      const value = shown.heat[key][index];
      return el("span", { style: `background: ${shade(value)}`, title: digits(value) }, text);
    });
    return el("div", {}, el("p", { class: "muted" }, name), el("p", { class: "tokens", "aria-label": `${title}: ${name}` }, ...marks));
  });
  return el("div", {}, ...rows);
}

function shade(value) {
  const [red, green, blue] = value > 0 ? ADDS : TAKES;
  return `rgb(${red} ${green} ${blue} / ${(0.55 * Math.min(Math.abs(value), 1)).toFixed(3)})`;
}

function heatTable(shown) {
  const rows = shown.texts.map((text, index) => ({ text, a: shown.heat.a[index], b: shown.heat.b[index], again: shown.heat.again[index] }));
  return dataTable(
    [
      { title: "Part", key: "text", wide: true },
      { title: "A", key: "a", text: digits, number: true },
      { title: "B", key: "b", text: digits, number: true },
      { title: "A again", key: "again", text: digits, number: true },
    ],
    rows,
    { caption: "Heat, 1 at its largest", most: 30 },
  );
}
