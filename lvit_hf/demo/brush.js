/* The brush: a mask that the visitor corrects and keeps. It is read before viewer.js, whose functions and state it
   uses. */
"use strict";

/* A mask, values 0 and 1, and its picture. Strokes are the pixels that they changed, so undoing one changes them back. */
class Correction {
  constructor({ width, height, values }, threshold) {
    Object.assign(this, { width, height, values, threshold, said: values.slice(), strokes: [], count: 0, common: 0, total: 0 });
    this.picture = new OffscreenCanvas(width, height);
    this.context = this.picture.getContext("2d");
    this.image = this.context.createImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
    values.forEach((value, index) => value && (this.pixels[index] = color(MASK)));
    for (const value of values) this.total += value;
    this.common = this.count = this.total;
    this.context.putImageData(this.image, 0, 0);
  }

  begin() {
    this.strokes.push([]);
  }

  /* Changes the pixels of a value within a radius of the line between two points, and the pixel at its end. */
  paint([startX, startY], [endX, endY], radius, value) {
    const [left, right] = [Math.min(startX, endX) - radius, Math.max(startX, endX) + radius].map(Math.floor);
    const [top, bottom] = [Math.min(startY, endY) - radius, Math.max(startY, endY) + radius].map(Math.floor);
    const [alongX, alongY] = [endX - startX, endY - startY];
    const length = alongX ** 2 + alongY ** 2 || 1;
    for (let y = Math.max(top, 0); y <= Math.min(bottom, this.height - 1); y++) {
      for (let x = Math.max(left, 0); x <= Math.min(right, this.width - 1); x++) {
        const [toX, toY] = [x + 0.5 - startX, y + 0.5 - startY];
        const share = Math.min(Math.max((toX * alongX + toY * alongY) / length, 0), 1);
        const isNear = (toX - share * alongX) ** 2 + (toY - share * alongY) ** 2 <= radius ** 2;
        if (isNear || (x === Math.floor(endX) && y === Math.floor(endY))) this.set(y * this.width + x, value);
      }
    }
    this.context.putImageData(this.image, 0, 0, left, top, right - left + 1, bottom - top + 1);
  }

  set(index, value) {
    if (this.values[index] === value) return;
    this.strokes.at(-1).push(index);
    this.toggle(index);
  }

  toggle(index) {
    const step = this.values[index] ? -1 : 1;
    this.values[index] += step;
    this.count += step;
    this.common += step * this.said[index];
    this.pixels[index] = this.values[index] ? color(MASK) : 0;
  }

  /* Forgets a stroke that changed nothing. */
  end() {
    if (!this.strokes.at(-1).length) this.strokes.pop();
  }

  undo() {
    for (const index of this.strokes.pop() || []) this.toggle(index);
    this.context.putImageData(this.image, 0, 0);
  }

  /* Back to what the model said, as one more stroke. */
  reset() {
    this.begin();
    this.said.forEach((value, index) => this.set(index, value));
    this.end();
    this.context.putImageData(this.image, 0, 0);
  }

  /* As two empty masks agree, their Dice is 1. */
  get dice() {
    return this.count + this.total ? (2 * this.common) / (this.count + this.total) : 1;
  }
}

// The last ones, by what was asked for: nothing is lost on the way to another image or slice and back.
const corrections = new Map();
const MOST_CORRECTIONS = 6;

// `at` is where the brush is, in pixels of the picture; `pointer` is what draws with it.
const brush = { at: null, pointer: null };

/* The correction that is on the stage, if there is one. */
const correcting = () => (state.correcting ? state.correction : null);

/* Takes the mask at the threshold, or goes on with what was corrected of it. */
async function openCorrection() {
  state.correcting = true;
  const [request, asked, at] = [state.request, askedSlice(), threshold()];
  const key = JSON.stringify({ ...asked, threshold: at });
  if (!corrections.has(key)) {
    const answer = await ask("mask", { ...asked, threshold: at });
    const map = answer.error ? null : await unpack(answer.mask);
    if (request !== state.request || !state.correcting) return;
    if (asked.slice !== askedSlice().slice || at !== threshold()) return openCorrection();
    if (answer.error) {
      state.correcting = false;
      return fail(answer.error, false);
    }
    corrections.set(key, new Correction(map, at));
    if (corrections.size > MOST_CORRECTIONS) corrections.delete(corrections.keys().next().value);
  }
  if (state.correction !== corrections.get(key)) Object.assign(state, { correction: corrections.get(key), kept: null });
  brush.at ??= [state.shown.width / 2, state.shown.height / 2];
  showCorrection();
}

function closeCorrection() {
  state.correcting = false;
  showCorrection();
  $(".correct").focus();
}

/* Another picture or slice is shown; its mask is corrected in turn if this one's was. */
function changeCorrected() {
  Object.assign(state, { correction: null, kept: null });
  Object.assign(brush, { at: null, pointer: null });
  showCorrection();
  if (state.correcting && state.result) openCorrection();
}

const askedSlice = () => ({ ...state.asked, slice: state.result.slice });

function showCorrection() {
  const correction = correcting();
  $(".result").classList.toggle("correcting", Boolean(correction));
  $(".correct").hidden = !(props.keep && state.result && !state.result.planes);
  $("#lvit-keys").textContent = t(correction ? "keys_correct" : "keys");
  if (correction) {
    $(".undo").disabled = !correction.strokes.length;
    $(".reset").disabled = correction.dice === 1;
    $(".agreement").textContent = fill("agreement", { dice: correction.dice.toFixed(4) });
    $(".kept").textContent = state.kept ? fill("kept", { ...state.kept, folder: props.keep }) : "";
  }
  draw();
}

async function keep(split) {
  const [correction, request, asked] = [correcting(), state.request, askedSlice()];
  $(".kept").textContent = t("working");
  const stream = new Blob([correction.values]).stream().pipeThrough(new CompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  let content = "";
  for (let start = 0; start < bytes.length; start += 32768) content += String.fromCharCode(...bytes.subarray(start, start + 32768));
  const answer = await ask("keep", { ...asked, threshold: correction.threshold, split, mask: btoa(content) });
  if (request !== state.request || correction !== state.correction) return;
  state.error = answer.error || null;
  showError();
  state.kept = answer.error ? null : answer;
  if (state.kept && state.row != null) state.many.rows[state.row].kept = true;
  showMany();
  showCorrection();
}

function changeMask(change) {
  state.kept = null;
  change(correcting());
  showCorrection();
}

// ------------------------------------------------------------------------------- the brush by pointer and by keyboard

const stagePane = () => [0, 0, canvas.width, canvas.height];

function pointAt(event) {
  const box = canvas.getBoundingClientRect();
  const ratio = canvas.width / box.width;
  const [left, top, width, height] = fit(stagePane());
  const [x, y] = [(event.clientX - box.left) * ratio - left, (event.clientY - box.top) * ratio - top];
  return [(x / width) * state.shown.width, (y / height) * state.shown.height];
}

/* In pixels of the picture: on the screen the brush is as large at every zoom. */
function brushRadius() {
  const ratio = window.devicePixelRatio || 1;
  return ((Number($(".brush").value) / 2) * ratio * state.shown.width) / fit(stagePane())[2];
}

function paintTo(point) {
  const value = Number($("[name=lvit-tool]:checked").value);
  changeMask((correction) => correction.paint(brush.at, point, brushRadius(), value));
  brush.at = point;
}

/* The first finger or button draws; a second finger takes its stroke back, since the two zoom. */
function beginStroke(event) {
  if (!correcting() || event.button) return;
  if (pointers.size > 1) {
    if (brush.pointer != null) changeMask((correction) => correction.undo());
    brush.pointer = null;
    return;
  }
  brush.pointer = event.pointerId;
  brush.at = pointAt(event);
  correcting().begin();
  paintTo(brush.at);
}

/* Whether the pointer draws, and so does not move the picture. */
function moveBrush(event) {
  if (!correcting()) return false;
  const draws = brush.pointer === event.pointerId;
  if (draws) {
    pointers.set(event.pointerId, [event.clientX, event.clientY]); // from where a second finger zooms
    paintTo(pointAt(event));
  } else if (!pointers.size) brush.at = pointAt(event);
  draw();
  return draws;
}

function endStroke(event) {
  if (brush.pointer !== event.pointerId) return;
  brush.pointer = null;
  correcting()?.end();
  showCorrection();
}

/* Whether the key is one of the brush. */
function pressBrushKey(event) {
  if (brush.pointer != null || event.ctrlKey || event.metaKey || event.altKey) return false;
  const step = event.shiftKey ? 1 : Math.max(1, brushRadius());
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[event.key]) moveBrushBy(moves[event.key]);
  else if (event.key === " " || event.key === "Enter") {
    correcting().begin();
    paintTo(brush.at);
    correcting().end();
    showCorrection();
  } else if (/^[be]$/i.test(event.key)) $(`[name=lvit-tool][value="${event.key.toLowerCase() === "b" ? 1 : 0}"]`).checked = true;
  else if (event.key === "[" || event.key === "]") changeBrush(Number($(".brush").value) * (event.key === "[" ? 0.8 : 1.25));
  else return false;
  return true;
}

/* Moves the brush within the picture, and the picture so far that the brush stays on the stage. */
function moveBrushBy(move) {
  const sides = [state.shown.width, state.shown.height];
  brush.at = brush.at.map((value, axis) => Math.min(Math.max(value + move[axis], 0.5), sides[axis] - 0.5));
  const [left, top, ...size] = fit(stagePane());
  const place = [left, top].map((start, axis) => start + (brush.at[axis] / sides[axis]) * size[axis]);
  const outside = place.map((value, axis) => Math.min(value, 0) || Math.max(value - stagePane()[axis + 2], 0));
  state.pan = state.pan.map((value, axis) => value - outside[axis]);
  draw();
}

function changeBrush(size) {
  $(".brush").value = Math.round(size);
  $(".brush + output").textContent = `${$(".brush").value} px`;
  draw();
}

/* A ring of two colours, which is seen on every picture. */
function drawBrush(context, ratio) {
  const [left, top, width, height] = fit(stagePane());
  const [x, y] = [left + (brush.at[0] / state.shown.width) * width, top + (brush.at[1] / state.shown.height) * height];
  for (const [style, line] of [["#09090b", 3], ["#fafafa", 1]]) {
    context.beginPath();
    context.arc(x, y, (Number($(".brush").value) / 2) * ratio, 0, 2 * Math.PI);
    Object.assign(context, { strokeStyle: style, lineWidth: line * ratio });
    context.stroke();
  }
}

function listenToBrush() {
  const change = (how) => brush.pointer == null && changeMask(how); // not in the middle of a stroke
  on(".correct", "click", async () => {
    await openCorrection();
    bringIntoView();
    canvas.focus({ preventScroll: true });
  });
  on(".done", "click", closeCorrection);
  on(".undo", "click", () => change((correction) => correction.undo()));
  on(".reset", "click", () => change((correction) => correction.reset()));
  on(".keep", "click", (event) => keep(event.currentTarget.value));
  on(".brush", "input", () => changeBrush($(".brush").value));
  on(".viewer", "keydown", (event) => {
    if (!correcting() || event.key.toLowerCase() !== "z" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    change((correction) => correction.undo());
  });
  changeBrush($(".brush").value);
}
