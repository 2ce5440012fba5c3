/* The network, in a thread of its own. A message `{ request, bytes, size: [height, width], text }` asks for a mask. */

import { resize, resizePixels } from "./image.js";
import { openTokenizer, tokenize } from "./tokens.js";

let settings, ort, engine, tower;
const opening = openNetwork();
let queue = opening.then(({ threads }) => postMessage({ ready: { engine, threads } })).catch(report);

self.onmessage = ({ data }) => {
  queue = queue.then(() => segment(data)).then((result) => postMessage(result, [result.probabilities.buffer])).catch(report);
};

function report(error) {
  const hint = engine === "webgpu" ? " With ?engine=wasm behind the page's address it runs on the processor." : "";
  postMessage({ error: `${error.message || error}${hint}` });
}

/* The content of files of the Space, decompressed. Tells the page how far they are. */
async function load(...names) {
  const received = Object.fromEntries(names.map((name) => [name, 0]));
  const total = names.reduce((sum, name) => sum + settings.bytes[name], 0);
  const loadOne = async (name) => {
    const response = await fetch(name).catch(() => null);
    if (!response?.ok) throw new Error(`${name} cannot be loaded. Check the connection, then reload the page.`);
    const chunks = [];
    for await (const chunk of readChunks(response.body)) {
      chunks.push(chunk);
      received[name] += chunk.length;
      postMessage({ loading: Math.min(Object.values(received).reduce((sum, bytes) => sum + bytes) / total, 1), total });
    }
    return decompress(new Blob(chunks));
  };
  return Promise.all(names.map(loadOne));
}

async function* readChunks(stream) {
  const reader = stream.getReader();
  for (let step = await reader.read(); !step.done; step = await reader.read()) yield step.value;
}

/* Some servers send compressed files as such, which the browser decompresses by itself. */
async function decompress(blob) {
  const [first, second] = new Uint8Array(await blob.slice(0, 2).arrayBuffer());
  if (first !== 0x1f || second !== 0x8b) return blob.arrayBuffer();
  return new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

/* WebGPU where there is a graphics card, else WebAssembly, unless the worker is named after one of them. */
async function chooseEngine() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter || self.name === "wasm") return "wasm";
  return self.name === "webgpu" || !adapter.info?.isFallbackAdapter ? "webgpu" : "wasm";
}

async function openNetwork() {
  settings = await (await fetch("settings.json")).json();
  engine = await chooseEngine();
  const [binary, network] = await load(`ort.${engine}.wasm`, "network.onnx");
  ort = await import(`./ort.${engine}.mjs`);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1;
  const session = await openSession(network);
  return { session, threads: ort.env.wasm.numThreads };
}

async function openSession(model) {
  if (engine === "webgpu") {
    try {
      return await ort.InferenceSession.create(model, { executionProviders: ["webgpu"] });
    } catch {
      engine = "wasm"; // of the same build
    }
  }
  return ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
}

/* The word vectors of a caption, and how many words it has. Without one the network takes what it learned for none. */
async function encode(text) {
  const [count, width] = settings.vectors;
  if (!text.trim()) {
    const nothing = new ort.Tensor("float32", new Float32Array(count * width), [1, count, width]);
    return { text_embeds: nothing, text_mask: new ort.Tensor("bool", new Uint8Array(count), [1, count]), words: 0 };
  }
  tower ??= await openTower();
  const { ids, wordIds } = tokenize(tower.tokenizer, text, settings.longest);
  const toTensor = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const inputs = { input_ids: toTensor(ids), attention_mask: toTensor(ids.map(() => 1)), word_ids: toTensor(wordIds) };
  return { ...(await tower.session.run(inputs)), words: Math.max(...wordIds) };
}

async function openTower() {
  const [model] = await load("text_model.onnx");
  return { tokenizer: await openTokenizer(), session: await openSession(model) };
}

async function segment({ request, bytes, size, text }) {
  const { session } = await opening;
  const { words, ...vectors } = await encode(text);
  postMessage({ running: request });
  const start = performance.now();
  const pixels = new ort.Tensor("float32", resizePixels(bytes, size, settings.size), [1, 3, ...settings.size]);
  const outputs = await session.run({ pixels, ...vectors });
  const probabilities = resize(outputs.probabilities.data, settings.size, size);
  const seconds = (performance.now() - start) / 1000;
  return { request, probabilities, size, words, seconds, scope: judge(outputs.scope?.data), engine };
}

/* The kind of training image that an image is most like, and how like it is: in scope from 0.5 on. */
function judge(distances) {
  if (!distances) return null;
  const nearest = distances.indexOf(Math.min(...distances));
  return { kind: settings.kinds[nearest], score: 1 / (1 + distances[nearest] ** 2) };
}
