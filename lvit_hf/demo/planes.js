/* Volumes on the page: an axial, a coronal and a sagittal plane through one place, which move together. This runs in one
   function with viewer.js, and before it. */
/* global $, addressOf, draw, drawOutline, fill, heatColor, layer, make, maskColor, OUTLINE, root, state, step, t, view */
"use strict";

// The axes of a volume grow to the feet, the back and the left: that along which a plane moves, and of its rows and columns.
const PLANES = [
  { name: "axial", axis: 0, rows: 1, columns: 2, ends: ["right", "left"] },
  { name: "coronal", axis: 1, rows: 0, columns: 2, ends: ["right", "left"] },
  { name: "sagittal", axis: 2, rows: 0, columns: 1, ends: ["front", "back"] },
];
const CROSSHAIR = "rgb(250 204 21 / 80%)";

/* Fetches the voxels and the probabilities of a volume, once for all thresholds. */
async function loadPlanes(planes) {
  const response = await fetch(addressOf(planes.path));
  const bytes = await new Response(response.body.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  const count = planes.shape.reduce((product, side) => product * side);
  planes.voxels = new Uint8Array(bytes, 0, count);
  planes.counts = new Uint8Array(bytes, count);
  planes.place = middleOfMask(planes);
}

/* Of the mask, or of the volume where there is none. */
function middleOfMask({ counts, shape: [depth, height, width] }) {
  const [most, sums] = [step(), [0, 0, 0]];
  let found = 0;
  for (let z = 0, index = 0; z < depth; z++) for (let y = 0; y < height; y++) for (let x = 0; x < width; x++, index++) {
    if (counts[index] <= most) continue;
    found += 1;
    sums[0] += z;
    sums[1] += y;
    sums[2] += x;
  }
  return found ? sums.map((sum) => Math.round(sum / found)) : [depth, height, width].map((side) => Math.floor(side / 2));
}

/* The part of an array that a plane cuts out. */
function cutPlane(array, { shape, place }, { axis, rows, columns }) {
  const steps = [shape[1] * shape[2], shape[2], 1];
  const [height, width] = [shape[rows], shape[columns]];
  const values = new Uint8Array(height * width);
  let index = 0;
  for (let row = 0; row < height; row++) {
    let at = place[axis] * steps[axis] + row * steps[rows];
    for (let column = 0; column < width; column++, at += steps[columns]) values[index++] = array[at];
  }
  return { width, height, values };
}

/* Draws the planes of the result, and says whether it has some. */
function drawPlanes() {
  const planes = state.result?.planes;
  root.toggleAttribute("data-planes", Boolean(planes));
  if (!planes) return false;
  if (!$(".planes figure")) buildPlanes();
  for (const plane of PLANES) drawPlane(planes, plane);
  return true;
}

function buildPlanes() {
  $(".planes").replaceChildren(...PLANES.map((plane) => {
    const figure = make("figure", null, { "data-plane": plane.name });
    const [canvas, label] = [make("canvas", null, { role: "img", tabindex: -1 }), make("label")];
    const slider = make("input", null, { type: "range", min: 1 });
    label.append(make("span"), slider, make("output"));
    figure.append(canvas, label);
    slider.addEventListener("input", () => moveTo({ [plane.axis]: slider.value - 1 }));
    canvas.addEventListener("pointerdown", (event) => {
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      point(plane, canvas, event);
    });
    canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && point(plane, canvas, event));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return;
      event.preventDefault();
      moveTo({ [plane.axis]: state.result.planes.place[plane.axis] + Math.sign(event.deltaY) });
    }, { passive: false });
    return figure;
  }));
  new ResizeObserver(draw).observe($(".planes"));
}

/* Moves the place along some axes. */
function moveTo(places) {
  const { place, shape } = state.result.planes;
  for (const [axis, value] of Object.entries(places)) place[axis] = Math.min(Math.max(value, 0), shape[axis] - 1);
  draw();
}

function point({ rows, columns }, canvas, event) {
  const { shape } = state.result.planes;
  const [box, ratio] = [canvas.getBoundingClientRect(), window.devicePixelRatio || 1];
  const [left, top, width, height] = planeBox(state.result.planes, { rows, columns }, canvas);
  moveTo({
    [columns]: Math.floor((((event.clientX - box.left) * ratio - left) / width) * shape[columns]),
    [rows]: Math.floor((((event.clientY - box.top) * ratio - top) / height) * shape[rows]),
  });
}

/* Where a plane lies on its canvas, in its true proportions. */
function planeBox({ shape, spacing }, { rows, columns }, canvas) {
  const [width, height] = [shape[columns] * spacing[columns], shape[rows] * spacing[rows]];
  const scale = Math.min(canvas.width / width, canvas.height / height);
  return [(canvas.width - width * scale) / 2, (canvas.height - height * scale) / 2, width * scale, height * scale];
}

function drawPlane(planes, plane) {
  const figure = $(`[data-plane=${plane.name}]`);
  const [canvas, ratio] = [figure.querySelector("canvas"), window.devicePixelRatio || 1];
  Object.assign(canvas, { width: Math.round(canvas.clientWidth * ratio), height: Math.round(canvas.clientHeight * ratio) });
  if (!canvas.width || !canvas.height) return;
  const [context, box, most] = [canvas.getContext("2d"), planeBox(planes, plane, canvas), step()];
  const counts = cutPlane(planes.counts, planes, plane);
  const picture = view() === "heat" ? layer(counts, heatColor) : layer(counts, maskColor);
  context.drawImage(greyPicture(cutPlane(planes.voxels, planes, plane)), ...box);
  context.globalAlpha = Number($(".opacity").value) / 100;
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, ...box);
  context.globalAlpha = 1;
  if (view() !== "heat") drawOutline(context, picture, box, Math.round((OUTLINE / 2) * ratio));
  drawCrosshair(context, planes, plane, box);
  drawEnds(context, plane, ratio);
  describePlane(figure, planes, plane, counts.values.reduce((count, value) => count + (value > most), 0));
}

function greyPicture({ width, height, values }) {
  const picture = new OffscreenCanvas(width, height);
  const context = picture.getContext("2d");
  const image = context.createImageData(width, height);
  new Uint32Array(image.data.buffer).forEach((_, index, pixels) => (pixels[index] = 0xff000000 | (values[index] * 0x010101)));
  context.putImageData(image, 0, 0);
  return picture;
}

function drawCrosshair(context, { place, shape }, { rows, columns }, [left, top, width, height]) {
  const x = left + ((place[columns] + 0.5) / shape[columns]) * width;
  const y = top + ((place[rows] + 0.5) / shape[rows]) * height;
  context.fillStyle = CROSSHAIR;
  context.fillRect(Math.floor(x), top, 1, height);
  context.fillRect(left, Math.floor(y), width, 1);
}

/* Letters that say where the left and the right edge are in the patient. */
function drawEnds(context, { ends }, ratio) {
  const { width, height } = context.canvas;
  Object.assign(context, { font: `bold ${14 * ratio}px system-ui, sans-serif`, textBaseline: "middle", fillStyle: "#fafafa" });
  Object.assign(context, { lineWidth: 4 * ratio, lineJoin: "round", strokeStyle: "#09090b" }); // to be read on white too
  ends.forEach((end, index) => {
    const place = [t(`end_${end}`), index ? width - 8 * ratio : 8 * ratio, height / 2];
    context.textAlign = index ? "right" : "left";
    context.strokeText(...place);
    context.fillText(...place);
  });
}

function describePlane(figure, { place, shape }, { name, axis }, count) {
  const [slider, at] = [figure.querySelector("input"), place[axis] + 1];
  Object.assign(slider, { max: shape[axis], value: at });
  figure.querySelector("span").textContent = t(name);
  figure.querySelector("output").textContent = `${at} / ${shape[axis]}`;
  figure.querySelector("canvas").setAttribute("aria-label", fill("plane_label", { plane: t(name), at, count }));
}
