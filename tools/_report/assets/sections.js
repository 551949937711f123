"use strict";
// Parts that several pages have: cards, notes, provenance, licences.

/** A card: what it is of, its figure now, how that compares, and where it was measured. */
function card(title, figure, comparison, notes = [], tone = "") {
  return el(
    "li",
    { class: `card ${tone}`.trim() },
    el("h3", {}, title),
    el("p", { class: "figure" }, figure),
    comparison ? el("p", { class: "comparison" }, comparison) : null,
    ...notes.filter(Boolean).map((note) => el("p", { class: "muted" }, note)),
  );
}

const cards = (list) => el("ul", { class: "cards" }, ...list.filter(Boolean));

/** Figures before and after, as a card has them. */
function beforeAfterCard(title, before, after, text, notes) {
  if (!isKnown(before) && !isKnown(after)) return null;
  const change = changeText(before, after);
  const comparison = isKnown(before) ? `before ${text(before)}${change ? `, ${change}` : ""}` : "";
  return card(title, text(after), comparison, notes);
}

/** A list of remarks in a box. */
function notice(kind, title, texts) {
  if (!texts.length) return null;
  const mark = { error: "✕", warning: "!", note: "i" }[kind];
  return el(
    "aside",
    { class: `notice ${kind}`, "aria-label": title },
    el("p", {}, el("b", { class: "badge", "aria-hidden": "true" }, mark), el("strong", {}, title)),
    el("ul", {}, ...texts.map((text) => el("li", {}, text))),
  );
}

/** Names and values side by side; a value is a text or an element. */
function factList(facts) {
  const known = facts.filter(([, value]) => isKnown(value) && value !== "");
  return el(
    "dl",
    { class: "facts" },
    ...known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
  );
}

/** Everything that passes declined, with what would change it. */
function declinedSection(passes, advice) {
  const rows = passes.flatMap((pass) =>
    (pass.declined ?? []).map((each) => ({
      pass: pass.text ?? pass.pass,
      where: each.where,
      reason: each.reason,
      change: advice[each.reason] ?? "",
    })),
  );
  if (!rows.length) return section("declined", "Declined", el("p", { class: "muted" }, "No pass declined anything."));
  const table = dataTable(
    [
      { title: "Where", key: "where", wide: true },
      { title: "Pass", key: "pass" },
      { title: "Reason", key: "reason", wide: true },
      { title: "What would change it", key: "change", wide: true },
    ],
    rows,
    { caption: "Declined, with reasons", filter: "Filter by layer, pass or reason", most: 30 },
  );
  const words = el("p", { class: "muted" }, "What passes could have touched and did not.");
  return section("declined", "Declined", words, table);
}

/** Versions and the machine. */
function machineFacts(account) {
  const versions = Object.entries(account.versions ?? {}).map(([name, version]) => [name, version]);
  const hardware = account.hardware;
  return [["CPU", hardware ? `${hardware.label}${hardware.saturates ? " (8-bit products saturate)" : ""}` : null], ...versions];
}

/** Libraries in the page, with their licences, at its foot. */
function footer(data) {
  const each = data.libraries.map((library) =>
    el("details", {}, el("summary", {}, `Licence of ${library.name}`), el("pre", {}, library.licence)),
  );
  return el(
    "footer",
    {},
    el("p", { class: "muted" }, "Made by onnx-opt. This page asks nothing of any network."),
    ...each,
  );
}

/** The head of a page: a title, a line of what was done, and more below it. */
function pageHeader(title, ...lines) {
  return el("header", {}, el("h1", {}, title), ...lines.filter(Boolean));
}
