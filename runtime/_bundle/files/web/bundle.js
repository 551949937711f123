// Files of the bundle that this page lies in, and its model in onnxruntime-web.

import { arrayOf } from "./npy.js";

const RUNTIME = "./ort.wasm.min.mjs";
const WITHOUT_RUNTIME = "onnxruntime-web is not in web/: copy ort.wasm.min.mjs, ort-wasm-simd-threaded.mjs and ort-wasm-simd-threaded.wasm there from its dist/ (npm install onnxruntime-web)";

// Digests are of secure pages alone: https, or localhost.
export const checksDigests = Boolean(globalThis.crypto?.subtle);

async function bytesOf(name) {
  const parts = name.split("/").map(encodeURIComponent);
  const answer = await fetch(parts.join("/"));
  if (!answer.ok) throw new Error(`${name}: ${answer.status} ${answer.statusText}`);
  return answer.arrayBuffer();
}

async function sha256Of(bytes) {
  const digest = await crypto.subtle.digest("SHA-256", bytes);
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function readManifest() {
  const bytes = await bytesOf("manifest.json");
  return JSON.parse(new TextDecoder().decode(bytes));
}

// Bytes of a file, which are those that were packaged.
async function packaged(manifest, name) {
  const bytes = await bytesOf(name);
  if (checksDigests && (await sha256Of(bytes)) !== manifest.files[name].sha256) throw new Error(`${name} is not the file that was packaged: its sha256 differs`);
  return bytes;
}

export async function loadRuntime() {
  const ort = await import(RUNTIME).catch((error) => {
    throw new Error(WITHOUT_RUNTIME, { cause: error });
  });
  // more than one needs headers of the server (cross-origin isolation)
  ort.env.wasm.numThreads = 1;
  return ort;
}

const numbersOf = (version) => version.split(".").slice(0, 2).map(Number);

export function checkRelease(version, least) {
  const [major, minor] = numbersOf(version);
  const [leastMajor, leastMinor] = numbersOf(least);
  const isOlder = major < leastMajor || (major === leastMajor && minor < leastMinor);
  if (isOlder) throw new Error(`onnxruntime-web ${version} is too old: the model needs ${least}`);
}

// Session of the model, and of its weights where they lie beside it.
export async function openSession(ort, manifest) {
  const { file, ort: ready, operators } = manifest.model;
  const others = [file, ready?.file, operators];
  const isWeights = (name) => name.startsWith("model/") && !others.includes(name);
  const externalData = [];
  for (const name of Object.keys(manifest.files).filter(isWeights)) {
    externalData.push({ path: name.slice("model/".length), data: await packaged(manifest, name) });
  }
  const model = await packaged(manifest, file);
  return ort.InferenceSession.create(model, { executionProviders: ["wasm"], externalData });
}

// Arrays of one side ("inputs", "outputs") of a sample, by name.
export async function sampleOf(manifest, number, side) {
  const arrays = {};
  for (const [index, { name }] of manifest[side].entries()) {
    const file = manifest.samples[number][side][index];
    arrays[name] = arrayOf(await packaged(manifest, file));
  }
  return arrays;
}
