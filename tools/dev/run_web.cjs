// Run one model in onnxruntime-web: node run_web.cjs MODULES REQUEST.json
// REQUEST: {"model": file, "inputs": {name: {"file", "type", "dims"}}, "folder": for the outputs, "runs": count}
// Prints {"outputs": {name: {"file", "type", "dims"}}, "ms": of the fastest run}.
const fs = require("fs");
const path = require("path");

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array };

async function main([modules, request]) {
  const ort = require(path.resolve(modules, "onnxruntime-web"));
  // one thread: what is compared are kernels
  ort.env.wasm.numThreads = 1;
  const asked = JSON.parse(fs.readFileSync(request, "utf8"));
  const model = new Uint8Array(fs.readFileSync(asked.model));
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const feeds = {};
  for (const [name, { file, type, dims }] of Object.entries(asked.inputs)) {
    const bytes = new Uint8Array(fs.readFileSync(file));
    feeds[name] = new ort.Tensor(type, new ARRAYS[type](bytes.buffer), dims);
  }
  let results = null;
  const times = [];
  for (let run = 0; run < asked.runs; run++) {
    const start = performance.now();
    results = await session.run(feeds);
    times.push(performance.now() - start);
  }
  const outputs = {};
  session.outputNames.forEach((name, index) => {
    const { data, type, dims } = results[name];
    const file = path.join(asked.folder, `output${index}.bin`);
    fs.writeFileSync(file, Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    outputs[name] = { file, type, dims };
  });

  console.log(JSON.stringify({ outputs, ms: Math.min(...times) }));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(String(error));
  process.exit(1);
});
