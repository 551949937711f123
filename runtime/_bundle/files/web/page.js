// Runs the samples of the bundle, and shows each output beside the one that is expected.

import { checkRelease, checksDigests, loadRuntime, openSession, readManifest, sampleOf } from "./bundle.js";
import { distance, inWords, outside, short } from "./compare.js";
import { valuesOf } from "./npy.js";

const SHOWN = 10;
const HEADS = ["output", "limits", "distance", "type and shape", "values", "expected"];

const place = (id) => document.getElementById(id);

function element(kind, text = "", className = "") {
  const made = document.createElement(kind);
  made.textContent = text;
  made.className = className;
  return made;
}

function say(text, className) {
  const verdict = place("verdict");
  verdict.textContent = text;
  verdict.className = className;
}

const digits = (value) => (typeof value === "number" ? String(Number(value.toPrecision(7))) : String(value));

// The first few values of an array.
function beginning(array) {
  const values = valuesOf(array);
  const shown = values.slice(0, SHOWN).map(digits);
  return shown.join(", ") + (values.length > SHOWN ? ", …" : "");
}

function outputRow(limits, expected, got) {
  const found = distance(expected, got);
  const problem = outside(limits, found);
  const row = element("tr");
  row.append(
    element("td", limits.name),
    element("td", problem ?? "within", problem ? "bad" : "good"),
    element("td", inWords(found)),
    element("td", `${got.type} (${got.dims.join(", ")})`),
    element("td", beginning(got), "values"),
    element("td", beginning(expected), "values"),
  );
  return { row, problem };
}

// Runs one sample and appends its table; returns how many outputs miss their limits.
async function showSample(ort, session, manifest, number) {
  const feeds = {};
  for (const [name, { type, dims, data }] of Object.entries(await sampleOf(manifest, number, "inputs"))) {
    feeds[name] = new ort.Tensor(type, data, dims);
  }
  const start = performance.now();
  const outputs = await session.run(feeds);
  const ms = performance.now() - start;
  const expected = await sampleOf(manifest, number, "outputs");
  const rows = manifest.tolerance.outputs.map((limits) => outputRow(limits, expected[limits.name], outputs[limits.name]));
  const table = element("table");
  const head = element("tr");
  head.append(...HEADS.map((text) => element("th", text)));
  table.append(head, ...rows.map(({ row }) => row));
  const scroll = element("div", "", "scroll");
  scroll.append(table);
  place("samples").append(element("h2", `Sample ${number}, ${short(ms)} ms`), scroll);
  return rows.filter(({ problem }) => problem).length;
}

function showFacts(facts) {
  for (const [term, text] of Object.entries(facts)) place("facts").append(element("dt", term), element("dd", text));
}

async function main() {
  say("The samples run …", "");
  const manifest = await readManifest();
  document.title = manifest.name;
  place("name").textContent = manifest.name;
  const ort = await loadRuntime();
  const version = ort.env.versions.web;
  checkRelease(version, manifest.runtime.minimum);
  const start = performance.now();
  const session = await openSession(ort, manifest);
  showFacts({
    runtime: `onnxruntime-web ${version}, WebAssembly, one thread`,
    "made for": manifest.target,
    model: `${manifest.figures.bytes} bytes, loaded in ${short(performance.now() - start)} ms`,
    files: checksDigests ? "as packaged" : "not compared with their digests: this address is neither https nor localhost",
  });
  let missed = 0;
  for (const number of manifest.samples.keys()) missed += await showSample(ort, session, manifest, number);
  const count = manifest.samples.length;
  if (missed) say(`NOT as expected: ${missed} of ${count * manifest.outputs.length} outputs`, "bad");
  else say(`All outputs of ${count} samples are as expected`, "good");
}

main()
  .catch((error) => say(error.message, "bad"))
  .finally(() => (document.documentElement.dataset.ready = "true"));
