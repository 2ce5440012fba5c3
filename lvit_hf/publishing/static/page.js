/* The page: reads an image, asks the worker for probabilities, and draws them. */

const MASK = [45, 212, 191];
const OFFLINE_DELAY = 3000; // milliseconds after which the page goes on without the cache
const MOST_PIXELS = 16e6;

const $ = (selector) => document.querySelector(selector);
const [image, mask] = [$("#image"), $("#mask")];
const [shown, drawn] = [image.getContext("2d", { willReadFrequently: true }), mask.getContext("2d")];

// The last wish, the image that it is about, and the answer to it.
const state = { request: 0, hasImage: false, result: null, worker: null, settings: null, threads: 1 };

function make(tag, attributes, ...content) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...content);
  return node;
}

function showExample({ image: path, text }) {
  const button = make("button", { type: "button", title: text }, make("img", { src: path, alt: `Example: ${text}` }));
  button.onclick = () => {
    $("#caption").value = text;
    open(fetch(path).then((response) => response.blob()), "The example");
  };
  return button;
}

// ------------------------------------------------------------------------------------------------------- the image

/* Decodes an image, upright and on black, and segments it. The file may still be on its way. */
async function open(source, name) {
  const request = begin();
  try {
    const file = await source;
    if (await isDeep(file)) throw new Error("has 16 bits a channel, of which a browser shows 8: save it with 8 bits.");
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" }).catch(() => {
      throw new Error("is no image that a browser can read. PNG, JPEG and WebP are; DICOM, NIfTI and TIFF are not.");
    });
    if (request !== state.request) return;
    if (bitmap.width * bitmap.height > MOST_PIXELS) throw new Error("has more than 16 million pixels: crop it.");
    for (const canvas of [image, mask]) [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
    shown.fillStyle = "#000";
    shown.fillRect(0, 0, bitmap.width, bitmap.height);
    shown.drawImage(bitmap, 0, 0);
    state.hasImage = true;
    segment();
  } catch (error) {
    if (request === state.request) fail(`${name} ${error.message}`);
  }
}

/* Whether a file is a PNG of 16 bits: its 25th byte says so. */
async function isDeep(file) {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  return String.fromCharCode(...head.slice(1, 4)) === "PNG" && head[24] === 16;
}

function begin() {
  state.request += 1;
  state.result = null;
  $("#error").hidden = true;
  showResult();
  return state.request;
}

function segment() {
  if (!state.hasImage || !state.worker) return;
  const request = begin();
  const { width, height } = image;
  const { data } = shown.getImageData(0, 0, width, height);
  say("Segmenting");
  $("section").setAttribute("aria-busy", "true");
  state.worker.postMessage({ request, bytes: data, size: [height, width], text: $("#caption").value }, [data.buffer]);
}

// ------------------------------------------------------------------------------------------------- what comes back

function take(message) {
  if (message.error) return fail(message.error);
  if ("loading" in message) return say(`Loading, ${(message.total / 1e6).toFixed(0)} MB`, message.loading);
  if (message.ready) {
    state.threads = message.ready.threads;
    $("#segment").disabled = false;
    if (!state.hasImage) say("");
  }
  if (message.running === state.request) say("Segmenting");
  if (message.request !== state.request) return;
  state.result = message;
  say("");
  showResult();
}

/* What the page is doing; nothing if blank. */
function say(text, share) {
  $("#loading").hidden = !text;
  $("label[for=progress]").textContent = text;
  if (share === undefined) $("#progress").removeAttribute("value");
  else $("#progress").value = share;
}

function fail(sentence) {
  say("");
  $("section").setAttribute("aria-busy", "false");
  $("#error").textContent = sentence;
  $("#error").hidden = false;
}

// ------------------------------------------------------------------------------------------------------ the result

const threshold = () => Number($("#threshold").value);

function showResult() {
  const { result } = state;
  $("#save").disabled = !result;
  $("#facts").replaceChildren();
  drawn.clearRect(0, 0, mask.width, mask.height);
  mask.setAttribute("aria-label", "No mask yet");
  if (!result) return;
  const [red, green, blue] = MASK;
  const pixels = drawMask([red, green, blue, 255], [0, 0, 0, 0]);
  const share = `${((100 * pixels) / result.probabilities.length).toFixed(1)} % of the image, ${pixels} pixels`;
  const facts = { Area: share, Caption: describeCaption(result), Image: describeScope(result), Time: describeTime(result) };
  for (const [name, value] of Object.entries(facts)) {
    if (value) $("#facts").append(make("dt", {}, name), make("dd", {}, value));
  }
  mask.setAttribute("aria-label", `Mask: ${share}`);
  $("section").setAttribute("aria-busy", "false");
}

/* Draws the mask in two colours and returns how many pixels it has. */
function drawMask(inside, outside, context = drawn) {
  const { probabilities, size: [height, width] } = state.result;
  const picture = context.createImageData(width, height);
  const [limit, colours] = [threshold(), new Uint32Array(picture.data.buffer)];
  const [on, off] = [inside, outside].map((colour) => new Uint32Array(Uint8Array.from(colour).buffer)[0]);
  let count = 0;
  for (let pixel = 0; pixel < probabilities.length; pixel++) {
    const found = probabilities[pixel] > limit;
    count += found;
    colours[pixel] = found ? on : off;
  }
  context.putImageData(picture, 0, 0);
  return count;
}

function describeCaption({ words }) {
  const read = state.settings.vectors[0];
  if (!words) return "none was given; the mask is of the image alone";
  return words > read ? `its first ${read} of ${words} words and signs were used, as they are written` : "used as it is written";
}

function describeScope({ scope }) {
  if (!scope) return null;
  if (scope.score >= 0.5) return `like the images of ${scope.kind} that the network was trained on (${scope.score.toFixed(2)})`;
  return `unlike all that the network was trained on (${state.settings.kinds.join(", ")}): do not trust the mask`;
}

function describeTime({ seconds, engine }) {
  const { threads } = state;
  const where = engine === "webgpu" ? "the graphics card" : `the processor, ${threads} thread${threads > 1 ? "s" : ""}`;
  return `${seconds.toFixed(2)} s on ${where}`;
}

/* A PNG of the image's size, white where the mask is. */
function save() {
  const canvas = make("canvas", { width: mask.width, height: mask.height });
  drawMask([255, 255, 255, 255], [0, 0, 0, 255], canvas.getContext("2d"));
  canvas.toBlob((blob) => {
    const link = make("a", { href: URL.createObjectURL(blob), download: "mask.png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  });
}

// ------------------------------------------------------------------------------------------------------ the visitor

$("#file").onchange = ({ target }) => {
  if (target.files[0]) open(target.files[0], target.files[0].name);
  target.value = ""; // so that the same file can be chosen again
};
$("#ask").onsubmit = (event) => {
  event.preventDefault();
  segment();
};
$("#opacity").oninput = ({ target }) => (mask.style.opacity = target.value);
mask.style.opacity = $("#opacity").value;
$("#threshold").oninput = () => {
  $("#chosen").value = threshold().toFixed(2);
  showResult();
};
$("#save").onclick = save;

const drop = $(".drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    const file = name === "drop" && event.dataTransfer.files[0];
    if (file) open(file, file.name);
  });
}

// ------------------------------------------------------------------------------------------------------- the start

/* From the first visit on, what was loaded is kept in the browser. */
async function keepOffline() {
  try {
    const controlled = new Promise((resolve) => {
      navigator.serviceWorker.addEventListener("controllerchange", resolve);
      setTimeout(resolve, OFFLINE_DELAY);
    });
    await navigator.serviceWorker.register("sw.js");
    if (!navigator.serviceWorker.controller) await controlled;
  } catch {
    // Some settings of browsers forbid to keep anything; the page works without.
  }
}

async function start() {
  await keepOffline();
  state.settings = await (await fetch("settings.json")).json();
  $("#captions").append(...state.settings.captions.map((text) => make("option", { value: text })));
  $("#examples").append(...state.settings.examples.map(showExample));
  // The address may choose what runs the network: ?engine=wasm or ?engine=webgpu.
  const engine = new URLSearchParams(location.search).get("engine") ?? "";
  state.worker = new Worker("worker.js", { type: "module", name: engine });
  state.worker.onmessage = ({ data }) => take(data);
  state.worker.onerror = ({ message }) => fail(`The network cannot be started: ${message || "this browser is too old"}.`);
  segment(); // what was chosen in the meantime
}

start();
