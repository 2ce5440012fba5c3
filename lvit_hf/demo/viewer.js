/* The page: asks the server (`Answers` in viewer.py) and draws what it answers. Gradio runs this as the body of a
   function with these arguments. */
/* global element, props, server, upload */
"use strict";

const OUTLINE = 2; // screen pixels
const FACTS_DELAY = 120; // milliseconds without a further change before measurements are asked for
const READ_DELAY = 250;
const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const MASK = [45, 212, 191];
const EFFECT = { both: MASK, more: [251, 146, 60], less: [192, 132, 252] };
const CLASSES = [MASK, [251, 146, 60], [192, 132, 252], [96, 165, 250], [250, 204, 21], [248, 113, 113]];

const root = element.querySelector(".lvit");
const $ = (selector) => root.querySelector(selector);
const $$ = (selector) => [...root.querySelectorAll(selector)];
const visitor = Math.random().toString(36).slice(2) + Date.now().toString(36);
const [canvas, stage, text, other] = [$("canvas"), $(".stage"), $(".text"), $(".other")];

// What is shown. `request` is that of the visitor's last wish: an answer to any other is dropped.
const state = {
  language: navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en",
  source: null, // {example} or {files}, with the kind and the names that the server found
  opening: false, // whether the source is on its way; it is segmented as soon as it is known
  shown: null, // the picture on the stage, before and after it is segmented
  result: null,
  second: null, // the result with other words
  comparison: 0, // number of the last request for it
  many: null, // the table, with the payload that was `asked` and the caption that was typed for all files, `text`
  row: null, // which of its rows is on the stage
  correcting: false, // whether the visitor corrects masks
  correction: null, // of the mask on the stage, if it was ever corrected
  kept: null,
  written: "", // the caption that the page itself has put into the field, which goes with its picture
  opacities: { mask: 40, heat: 100 }, // percent, of which the colours of the scale need all
  request: 0,
  used: false, // whether the visitor has pressed anything
  asked: null, // the payload of the result, or of the request for it
  error: null,
  zoom: 1,
  pan: [0, 0],
  panes: [], // where pictures are drawn on the canvas: left, top, width and height
  split: 50,
};

// ---------------------------------------------------------------------------------------------------- words

const t = (key) => props.texts[state.language][key] ?? props.texts.en[key] ?? key;
const word = (name) => (state.language === "zh" && props.texts.zh[`word ${name}`]) || name;
const inBoth = (key) => ({ en: props.texts.en[key], zh: props.texts.zh[key] });
const said = (sentence) => (sentence ? sentence[state.language] || sentence.en : "");
const nameLabels = (facts) => facts.labels.map((label) => (label === "foreground" ? t("finding") : word(label))).join(t("comma"));
const fill = (key, values) => t(key).replace(/\{(\w+)\}/g, (_, name) => values[name]);

function translate() {
  root.lang = state.language === "zh" ? "zh-CN" : "en";
  document.documentElement.lang = root.lang;
  for (const node of $$("[data-t]")) node.textContent = t(node.dataset.t);
  for (const node of $$("[data-t-label]")) node.setAttribute("aria-label", t(node.dataset.tLabel));
  for (const node of $$("[data-t-placeholder]")) node.placeholder = fill(node.dataset.tPlaceholder, { example: props.hint });
  for (const node of $$(".zoom button")) node.title = node.getAttribute("aria-label");
  $(".language").textContent = state.language === "zh" ? "English" : "中文";
  const kinds = props.kinds.split(", ").filter(Boolean).map(word);
  const list = new Intl.ListFormat(state.language === "zh" ? "zh-CN" : "en-GB").format(kinds);
  $(".tagline").textContent = fill("tagline", { kinds: list || t("medical_images") });
  $(".kinds").textContent = list && fill("trained_on", { kinds: list });
  for (const node of $$("[data-label]")) node.textContent = word(node.dataset.label);
  listScales();
  listAttributes();
  showSource();
  showResult();
  showError();
  showCorrection();
}

function make(tag, content, attributes = {}) {
  const node = document.createElement(tag);
  if (content != null) node.append(content);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

// ------------------------------------------------------------------------------------------- asking the server

async function ask(name, payload) {
  let answer;
  try {
    answer = await server[name]({ visitor, ...payload });
  } catch {
    answer = undefined;
  }
  return answer ?? { error: inBoth("no_answer") };
}

// The threshold in percent, as maps have it, and as a probability; 100 * 0.29 would be less than 29.
const step = () => Number($(".threshold").value);
const threshold = () => step() / 100;
const settings = () => ({
  side: $("[name=lvit-side]:checked").value,
  tile_size: Number($(".scale").value),
  model: $(".model").value.trim(),
});
const place = (source) => (source.example != null ? { example: source.example } : { files: source.files });

function chooseExample(index) {
  const { name, text: caption, tile_size: size } = props.examples[index];
  const request = replaceSource({ example: index, names: [name] });
  $(".scale").value = String(size || 0);
  setSide("image"); // as the captions of examples are meant
  write(caption);
  return openSource(request);
}

/* Puts words into the caption field that are not the visitor's. */
function write(caption) {
  text.value = state.written = caption;
  readCaption();
}

/* Shows what has come in, and segments it. */
async function openSource(request) {
  const answer = await ask("look", place(state.source));
  if (request !== state.request) return;
  if (answer.error) return fail(answer.error);
  Object.assign(state.source, { kind: answer.kind, names: answer.names || [answer.name] });
  showSource();
  if (answer.kind !== "many") await show(answer, request);
  if (request !== state.request) return;
  state.opening = false;
  return segment();
}

/* Puts another source in the place of all that is shown, and says that it is on its way. */
function replaceSource(source) {
  const request = begin();
  Object.assign(state, { source: { ...source, kind: null }, opening: true, shown: null, many: null, row: null });
  other.value = "";
  showSource();
  showResult();
  busy({});
  return request;
}

/* Forgets every result, on the page at once and on the server with the next request. */
function begin() {
  state.request += 1;
  Object.assign(state, { result: null, second: null, error: null, asked: null, truth: null });
  busy(null);
  changeCorrected();
  showResult();
  showError();
  return state.request;
}

/* Segments as the fields say: the slice or the row that is shown, or all of them. */
async function segment({ all = false, row = state.row } = {}) {
  if (state.opening) return;
  if (!state.source) return fail(inBoth("add_first"));
  if (!state.source.kind) return openSource(replaceSource(state.source)); // which failed
  const request = begin();
  if (state.source.kind === "many" && row == null) Object.assign(state, { many: null, shown: null });
  state.row = row;
  const payload = {
    ...place(state.source), ...settings(), text: text.value, threshold: threshold(), all, row,
    slice: state.source.kind === "volume" ? Number($(".slice").value) - 1 : null,
  };
  state.asked = payload;
  showSource();
  showResult();
  busy({});
  const answer = await follow({ ...payload, id: request }, () => request === state.request);
  if (!answer) return;
  busy(null);
  if (answer.error) return fail(answer.error);
  state.error = answer.stopped || null;
  if (answer.kind === "many") state.many = { ...answer, asked: payload, text: payload.text };
  else if (!answer.stopped) {
    await show(answer, request);
    if (request !== state.request) return;
    state.result = Object.assign(answer, { asked: payload });
    preselectFamily(answer.family);
  }
  showResult();
  changeCorrected();
  showError();
  compareAsked();
  bringIntoView();
}

/* Whether something was asked with the settings that the fields have now. */
const isOf = (asked) => Object.entries(settings()).every(([name, value]) => asked[name] === value);

/* What is shown belongs to what was asked. Whatever is changed on the page, and whenever an answer comes, the two are
   compared here: a result of other settings is asked for again, numbers of another threshold too. Words wait until they
   are sent, and tables for the visitor; until then they say that they are of something else. */
function compareAsked() {
  const { asked, result, source } = state;
  if (asked && !(source.kind === "many" && asked.row == null) && !isOf(asked)) return segment({ all: asked.all });
  if (result && result.facts.threshold !== threshold()) askFactsSoon();
  showAsked();
}

const quote = (caption) => caption.trim().replace(/[.。]$/, "") || t("no_caption");

/* Says of what the result and the table are where the fields have come to say something else. */
function showAsked() {
  const { asked, many, result, row } = state;
  const isOld = result && text.value.trim() !== asked.text.trim();
  $(".old-result").hidden = !isOld;
  $(".old-result").textContent = isOld ? fill("result_of", { text: quote(asked.text) }) : "";
  if (!many) return;
  const words = row == null ? [text.value, many.asked.text] : [asked?.text ?? "", many.rows[row].asked];
  $(".old-table").hidden = isOf(many.asked) && threshold() === many.asked.threshold && words[0].trim() === words[1].trim();
}

/* All files again, from the view of one: with the caption of this view where it was changed here. */
function segmentAll() {
  const { many, row } = state;
  if (row != null && text.value === many.rows[row].asked) text.value = many.text;
  segment({ all: true, row: null });
}

function openRow(index) {
  const { asked } = state.many.rows[index];
  if (state.row == null) state.many.text = text.value;
  if (text.value !== asked) write(asked);
  segment({ row: index });
}

/* On a phone the picture may lie above what was touched. */
function bringIntoView() {
  if (state.used && window.innerWidth <= 820) $(state.shown ? ".viewer" : ".many").scrollIntoView({ block: "nearest" });
}

/* The same image with other words, beside the first result. */
async function compareWords() {
  if (!state.result) return;
  const [request, mine] = [state.request, ++state.comparison];
  const isCurrent = () => request === state.request && mine === state.comparison;
  Object.assign(state, { second: null, error: null });
  showResult();
  showError();
  busy({});
  const payload = { ...state.asked, text: other.value, threshold: threshold() };
  const answer = await follow({ ...payload, slot: "words", id: mine }, isCurrent);
  if (!answer) return;
  busy(null);
  if (answer.error || answer.stopped) return fail(answer.error || answer.stopped, false, ".compare");
  await show(answer, request, false);
  if (!isCurrent()) return;
  state.second = Object.assign(answer, { asked: payload });
  if (answer.whole) await changeSlice(); // from the largest of its own masks to the slice that is shown
  if (!isCurrent()) return;
  showResult();
  setView("words");
  bringIntoView();
}

/* Asks for a result until it is there. Nothing comes of it if the visitor wants something else meanwhile. */
async function follow(payload, isCurrent) {
  for (;;) {
    const answer = await ask("segment", payload);
    if (!isCurrent()) return null;
    if (!answer.running) return answer;
    busy(answer.running);
  }
}

function stop() {
  if (state.opening) {
    begin();
    state.source = null;
    showSource();
    return fail(inBoth("upload_stopped"));
  }
  ask("stop", {});
  ask("stop", { slot: "words" });
}

/* Decodes the picture and the maps of an answer and puts the picture on the stage. */
async function show(answer, request, replace = true) {
  const image = new Image();
  image.src = answer.image;
  const parts = [unpack(answer.map), unpack(answer.null), unpack(answer.classes), image.decode(), answer.planes && loadPlanes(answer.planes)];
  const [map, null_map, classes] = await Promise.all(parts);
  if (request !== state.request) return;
  Object.assign(answer, { picture: image, map, null: null_map, classes });
  if (replace) {
    const same = state.shown && state.shown.name === answer.name && state.shown.width === answer.width;
    state.shown = answer;
    if (!same) resetZoom();
    if (answer.slices > 1) Object.assign($(".slice"), { max: answer.slices, value: answer.slice + 1 });
  }
}

async function unpack(map) {
  if (!map) return null;
  const bytes = Uint8Array.from(atob(map.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  return { width: map.width, height: map.height, values };
}

/* Says what was wrong, behind what was pressed. */
function fail(error, forget = true, after = ".go") {
  busy(null);
  state.error = { ...error, after };
  if (forget) {
    state.opening = false;
    showResult();
  }
  showError();
}

function showError() {
  const place = $(state.error?.after || ".go");
  (place.checkVisibility() ? place : $(".go")).after($(".error"));
  $(".error").hidden = !state.error;
  $(".error").textContent = said(state.error);
}

function busy(progress) {
  $(".busy").hidden = !progress;
  $(".stop").hidden = !progress;
  root.dataset.busy = progress ? "yes" : "no";
  if (!progress) return;
  const bar = $(".busy progress");
  if (progress.total) {
    bar.max = progress.total;
    bar.value = progress.finished;
  } else bar.removeAttribute("value");
  $(".busy span").textContent = progress.total ? `${progress.finished} / ${progress.total}` : t("working");
}

// ----------------------------------------------------------------------------------------- showing what is known

function showSource() {
  const source = state.source;
  $(".given").hidden = !source;
  const names = source ? source.names : [];
  $(".given .name").textContent = names.length > 1 ? fill("files", { count: names.length }) : names[0] || "";
  $$(".examples button").forEach((button, index) => button.setAttribute("aria-pressed", String(source?.example === index)));
  const [isVolume, isRow] = [source?.kind === "volume", state.row != null];
  $(".all").hidden = !isRow && (!isVolume || props.volumetric); // which takes all of them anyway
  $(".all").textContent = t(isRow ? "all_files" : "all_slices");
}

function showResult() {
  const result = state.result;
  $(".slice-label").hidden = !(state.shown?.slices > 1);
  const isText = Boolean(result?.null);
  $(".of-text").hidden = !isText;
  $(".of-words").hidden = !state.second;
  if ((view() === "effect" && !isText) || (view() === "words" && !state.second)) setView("mask");
  $(".verdict").hidden = !result;
  if (result) showVerdict($(".verdict"), result);
  showFacts(result?.facts);
  showNotes();
  showWritten(result);
  showMany();
  $(".viewer").hidden = Boolean(state.many && !state.shown);
  showDownloads();
  $(".more").hidden = !result;
  $(".compare").disabled = !result;
  showMarkers();
  showAsked();
  draw();
}

/* Whether a caption's verdict is a warning. */
const warns = (verdict) => ["unused", "differs", "partly"].includes(verdict);

function showVerdict(node, { verdict, facts }) {
  const score = facts.out_of_scope ? null : facts.consistency?.score;
  node.classList.toggle("amber", Boolean(facts.out_of_scope) || warns(verdict));
  node.classList.toggle("fits", verdict === "fits");
  node.textContent = t(`verdict_${facts.out_of_scope ? "scope" : verdict}`) + (score == null ? "" : ` (${score.toFixed(2)})`);
}

function number(value, digits = 0) {
  return value == null ? "–" : value.toLocaleString(state.language === "zh" ? "zh-CN" : "en-US", { maximumFractionDigits: digits });
}

const isEmpty = (facts) => !(facts.area_pixels ?? facts.voxels);

/* Why a mask is empty: because its caption says so, or because nothing was found, with the probability of that where
   the checkpoint knows one. */
function nameNothing({ reading, absence }) {
  if (reading?.absent) return t("said_nothing");
  return absence ? fill("nothing_probably", { percent: number(100 * absence) }) : t("nothing");
}

// Of an image that the checkpoint does not know, no finding and no size of one is named.
function listFacts(facts) {
  const rows = facts.out_of_scope ? [] : isEmpty(facts) ? [[t("finding"), nameNothing(state.result)]] : listSizes(facts);
  if (facts.dice != null) rows.push(["Dice", number(facts.dice, 4)], ["IoU", number(facts.iou, 4)]);
  return rows;
}

function listSizes(facts) {
  const largest = facts.largest_slice_largest_diameter ?? facts.largest_diameter;
  const unit = facts.largest_slice_diameter_unit ?? facts.diameter_unit;
  const rows = [[t("finding"), nameLabels(facts)]];
  if (facts.voxels != null) {
    rows.push([t("voxels"), `${number(facts.voxels)} · ${number(facts.percent, 2)} %`]);
    const volume = state.result?.planes ? `${number(1000 * facts.volume_ml)} mm³` : `${number(facts.volume_ml, 2)} ml`;
    if (facts.volume_ml != null) rows.push([t("volume"), volume]);
    rows.push([t("slices_with_mask"), `${facts.slices_with_findings} / ${facts.slices}`]);
  } else {
    const area = facts.area_mm2 != null ? `${number(facts.area_mm2, 1)} mm²` : `${number(facts.area_pixels)} px`;
    rows.push([t("area"), `${area} · ${number(facts.area_percent, 1)} %`]);
    rows.push([t("count"), number(facts.components)]);
  }
  rows.push([t("diameter"), largest == null ? "–" : `${number(largest, 1)} ${unit === "mm" ? "mm" : "px"}`]);
  return rows;
}

function showFacts(facts) {
  const list = $(".facts");
  list.classList.remove("old");
  list.replaceChildren();
  $(".more dl").replaceChildren();
  if (!facts) return;
  for (const [name, value] of listFacts(facts)) {
    const group = make("div");
    group.append(make("dt", name), make("dd", value));
    list.append(group);
  }
  const details = [
    [t("caption"), facts.text || t("no_caption")],
    [t("used"), t(facts.text_used ? "yes" : "no")],
    [t("mean_probability"), number(facts.mean_probability, 3)],
    [t("text_overlap"), facts.consistency?.mask_agreement == null ? "–" : `${number(100 * facts.consistency.mask_agreement)} %`],
    [t("size"), `${facts.width} × ${facts.height}${facts.slices > 1 ? ` × ${facts.slices}` : ""}`],
    [t("scale"), facts.tile_size ? fill("tiles", { size: facts.tile_size }) : t("whole")],
    [t("model"), facts.model],
  ];
  for (const [name, value] of details) $(".more dl").append(make("dt", name), make("dd", value));
}

/* What must be known of the masks that are shown; of two, what is said of one alone names its caption. */
function showNotes() {
  const list = $(".notes");
  const [results, notes] = [listShown(), []];
  for (const result of results) for (const sentence of result.notes) {
    const isOfAll = results.every((one) => one.notes.some(({ en }) => en === sentence.en));
    const line = isOfAll ? said(sentence) : `“${quote(result.text)}” – ${said(sentence)}`;
    if (!notes.some((note) => note.textContent === line)) notes.push(make("li", line));
  }
  if ((state.result || state.many)?.suggested_tiles) {
    const note = make("li", t("tiles_needed"));
    for (const [size, key] of [[176, "at_40"], [96, "at_20"]]) {
      const button = make("button", t(key), { type: "button" });
      button.addEventListener("click", (event) => {
        $(".scale").value = String(size);
        keepFocus(event, $(".segment"));
        segment();
      });
      note.append(button);
    }
    notes.unshift(note);
  }
  list.replaceChildren(...notes);
  list.hidden = !notes.length;
}

/* What is pressed by keyboard and goes away hands the focus on. */
const keepFocus = (event, node) => event.detail || node.focus();

function showWritten(result) {
  const captions = result?.facts.out_of_scope ? [] : result?.captions || [];
  $(".written").hidden = !captions.length;
  $(".suggestions").replaceChildren(...captions.map((caption) => {
    const [use, beside] = [make("button", make("span", caption.text), { type: "button", class: "use" }), make("button", t("beside"), { type: "button", class: "beside" })];
    use.append(make("span", `${Math.round(100 * caption.probability)} %`));
    use.addEventListener("click", (event) => {
      write(caption.text);
      keepFocus(event, text);
      segment();
    });
    beside.title = t("words");
    beside.setAttribute("aria-label", `${t("beside")}: ${caption.text}`);
    beside.addEventListener("click", (event) => {
      other.value = caption.text;
      keepFocus(event, canvas);
      compareWords();
    });
    const line = make("div", use);
    line.append(beside);
    return line;
  }));
}

function showMany() {
  $(".many").hidden = !state.many;
  if (!state.many) return $(".many table").replaceChildren();
  const focused = $$(".many td button").indexOf(document.activeElement);
  const head = make("tr");
  for (const key of ["picture", "file", "area", "count", "caption"]) head.append(make("th", t(key), { scope: "col" }));
  const rows = state.many.rows.map((row, index) => {
    const line = make("tr");
    const isWrong = !row.out_of_scope && warns(row.verdict);
    if (row.error || row.out_of_scope || row.suggested_tiles || isWrong) line.className = "amber-row";
    const picture = make("td", row.thumbnail ? make("img", null, { src: row.thumbnail, alt: "" }) : null);
    const name = make("td", row.error ? row.image : make("button", `${row.kept ? "✓ " : ""}${row.image}`, { type: "button" }));
    for (const note of row.said_notes || []) name.append(make("small", said(note)));
    name.querySelector("button")?.addEventListener("click", () => openRow(index));
    line.append(picture, name);
    if (row.error) line.append(make("td", said(row.problem), { colspan: 3 }));
    else {
      line.append(...describeSizes(row).map((size) => make("td", size, { class: "size" })));
      line.append(make("td", `${row.text || t("no_caption")}${isWrong ? ` – ${t(`verdict_${row.verdict}`)}` : ""}`));
    }
    return line;
  });
  $(".many table").replaceChildren(make("caption", t("table"), { class: "unseen" }), make("thead", head), make("tbody"));
  $(".many tbody").append(...rows);
  $$(".many td button")[focused]?.focus();
}

/* Area and parts of a mask in the table, each with its unit. */
function describeSizes(row) {
  if (row.out_of_scope) return [t("verdict_scope"), "–"];
  if (isEmpty(row)) return [t("nothing"), "–"];
  const parts = row.voxels == null ? number(row.components) : fill("of_slices", { count: number(row.slices_with_findings), all: number(row.slices) });
  const size = row.voxels == null ? `${number(row.area_pixels)} px` : fill("voxels_count", { count: number(row.voxels) });
  return [`${size} (${number(row.area_percent ?? row.percent, 1)} %)`, parts];
}

function showDownloads() {
  const menu = $(".downloads");
  menu.hidden = !(state.result || state.many);
  menu.open = false;
  const items = state.result
    ? ["mask", ...(state.result.native || state.result.whole ? ["native"] : []), "overlay", "report", "all"].filter((what) => !(state.result.whole && what === "mask"))
    : [];
  if (state.many) items.push("zip");
  menu.querySelector("div").replaceChildren(...items.map((what) => {
    const button = make("button", t(`download_${what}`), { type: "button" });
    button.addEventListener("click", () => download(what));
    return button;
  }));
}

/* Where the server hands out a file. */
function addressOf(path) {
  const { root: address, api_prefix: prefix } = window.gradio_config;
  return `${address}${prefix || "/gradio_api"}/file=${path}`;
}

async function download(what) {
  const { result } = state;
  const file = what === "zip" ? state.many : await ask("download", { ...state.asked, threshold: threshold(), what });
  if (file.error) return fail(file.error, false);
  const link = make("a", null, { href: addressOf(file.path), download: file.name });
  document.body.append(link);
  link.click();
  link.remove();
  $(".downloads").open = false;
  if (what === "zip" || result !== state.result) return;
  const known = result.notes.map((note) => note.en);
  result.notes.push(...file.notes.filter((note) => !known.includes(note.en)));
  showNotes();
}

/* Whose left and right they are, as the answer was asked for; a patient has some on frontal images alone. */
function showMarkers() {
  const isFrontal = Boolean(state.result?.frontal);
  const isPatients = isFrontal && state.result.facts.side === "patient";
  for (const [selector, here, there] of [[".at-left", "left", "right"], [".at-right", "right", "left"]]) {
    const marker = $(selector);
    marker.hidden = !state.shown;
    const note = isPatients ? t("of_patient") : isFrontal ? t(`patient_${there}`) : t("of_image");
    marker.replaceChildren(make("b", t(`marker_${isPatients ? there : here}`)), note);
  }
}

// ---------------------------------------------------------------------------------------------------- drawing

const view = () => $("[name=lvit-view]:checked").value;
const kindOfOpacity = () => (view() === "heat" && !correcting() ? "heat" : "mask");

/* The results whose masks are shown. */
const listShown = () => [state.result, view() === "words" && state.second].filter(Boolean);

function setView(name) {
  $(`[name=lvit-view][value=${name}]`).checked = true;
  const [tabs, tab] = [$(".views"), $(".views label:has(:checked)")]; // on a phone not all of them are in sight
  tabs.scrollLeft = tab.offsetLeft - tabs.offsetLeft - (tabs.clientWidth - tab.offsetWidth) / 2;
  changeView();
}

function changeView() {
  showNotes();
  draw();
}

function resetZoom() {
  Object.assign(state, { zoom: 1, pan: [0, 0] });
  stage.classList.remove("zoomed");
  draw();
}

const color = ([red, green, blue]) => (255 << 24) | (blue << 16) | (green << 8) | red;
const css = (rgb) => `rgb(${rgb.join(" ")})`;

/* A canvas with a color for each value of a map; `paint` is asked once for each value that there can be. */
function layer(map, paint, second = null) {
  const picture = new OffscreenCanvas(map.width, map.height);
  const context = picture.getContext("2d");
  const image = context.createImageData(map.width, map.height);
  const pixels = new Uint32Array(image.data.buffer);
  const table = new Uint32Array(second ? 65536 : 256);
  for (let value = 0; value < 101; value++) {
    if (!second) table[value] = paint(value) >>> 0;
    else for (let without = 0; without < 101; without++) table[(value << 8) | without] = paint(value, without) >>> 0;
  }
  if (second) for (let index = 0; index < pixels.length; index++) pixels[index] = table[(map.values[index] << 8) | second.values[index]];
  else for (let index = 0; index < pixels.length; index++) pixels[index] = table[map.values[index]];
  context.putImageData(image, 0, 0);
  return picture;
}

const maskColor = (value) => (value > step() ? color(MASK) : 0);

function maskLayer(result) {
  if (result.classes) return layer(result.classes, (value) => (value ? color(CLASSES[(value - 1) % CLASSES.length]) : 0));
  return layer(result.map, maskColor);
}

function heatColor(value) {
  const at = (value / 100) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return color(VIRIDIS[low].map((part, index) => Math.round(part + (at - low) * (VIRIDIS[low + 1][index] - part))));
}

function effectColor(most) {
  return (value, without) => {
    if (value > most) return color(without > most ? EFFECT.both : EFFECT.more);
    return without > most ? color(EFFECT.less) : 0;
  };
}

/* Cached layers: moving the picture does not paint them again. */
function layerOf(result, name) {
  result.layers ??= {};
  const key = name === "heat" ? "heat" : `${name} ${step()}`;
  if (result.layers.key !== key) {
    const picture = {
      mask: () => maskLayer(result),
      heat: () => layer(result.map, heatColor),
      effect: () => layer(result.map, effectColor(step()), result.null),
    }[name]();
    result.layers = { key, picture };
  }
  return result.layers.picture;
}

let waiting = 0;
function draw() {
  if (!waiting) waiting = requestAnimationFrame(() => {
    waiting = 0;
    drawNow();
  });
}

function drawNow() {
  $(".opacity").value = state.opacities[kindOfOpacity()];
  $(".threshold + output").textContent = threshold().toFixed(2);
  $(".opacity + output").textContent = `${$(".opacity").value} %`;
  $(".slice + output").textContent = `${$(".slice").value} / ${$(".slice").max}`;
  if (drawPlanes()) return describe();
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(stage.clientWidth * ratio), Math.round(stage.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, width, height);
  const chosen = correcting() ? "mask" : view();
  const stacked = height > width;
  const isSplit = chosen === "split" && Boolean(state.result);
  stage.classList.toggle("stacked", stacked);
  stage.classList.toggle("two", chosen === "words");
  const isTwo = chosen === "words" && Boolean(state.second);
  showPaneTexts(isTwo);
  state.panes = isTwo ? halve(width, height, stacked, ratio) : [[0, 0, width, height]];
  if (state.shown) {
    const results = isTwo ? [state.result, state.second] : [state.result];
    results.forEach((result, index) => drawPane(context, state.panes[index], result, isTwo ? "mask" : chosen, ratio));
    if (correcting()) drawBrush(context, ratio);
  }
  $(".handle").hidden = !isSplit;
  $(".scale-bar").hidden = !(chosen === "heat" && state.result);
  $(".scale-bar i").style.setProperty("--at", `${step()}%`);
  showLegend(chosen);
  describe();
}

/* Two panes, each below its caption. */
function halve(width, height, stacked, ratio) {
  const above = Math.max(...$$(".pane-text").map((node) => node.offsetHeight)) * ratio;
  const half = stacked ? [width, height / 2] : [width / 2, height];
  return [[0, above], stacked ? [0, half[1] + above] : [half[0], above]].map((corner) => [...corner, half[0], half[1] - above]);
}

/* Where the picture lies in a pane: all of it, unless the visitor zooms in. */
function fit([left, top, width, height]) {
  const scale = Math.min(width / state.shown.width, height / state.shown.height) * state.zoom;
  const size = [state.shown.width * scale, state.shown.height * scale];
  const limit = (value, inner, outer) => Math.max(-Math.max(inner - outer, 0) / 2, Math.min(value, Math.max(inner - outer, 0) / 2));
  state.pan = [limit(state.pan[0], size[0], width), limit(state.pan[1], size[1], height)];
  return [left + (width - size[0]) / 2 + state.pan[0], top + (height - size[1]) / 2 + state.pan[1], ...size];
}

function drawPane(context, pane, result, chosen, ratio) {
  const box = fit(pane);
  context.save();
  context.beginPath();
  context.rect(...pane);
  context.clip();
  context.imageSmoothingEnabled = box[2] < 4 * state.shown.width;
  context.drawImage((result || state.shown).picture, ...box);
  if (result?.map) {
    if (chosen === "split") {
      const edge = pane[0] + (pane[2] * state.split) / 100;
      context.beginPath();
      context.rect(edge, pane[1], pane[0] + pane[2] - edge, pane[3]);
      context.clip();
    }
    const name = chosen === "heat" || chosen === "effect" ? chosen : "mask";
    const picture = correcting()?.picture ?? layerOf(result, name);
    context.globalAlpha = Number($(".opacity").value) / 100;
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, ...box);
    context.globalAlpha = 1;
    if (name !== "heat") drawOutline(context, picture, box, Math.round(OUTLINE * ratio));
  }
  context.restore();
}

/* A line around the mask as wide on every screen and at every zoom: the mask moved to all sides, without itself. */
let scratch = null;
function drawOutline(context, picture, box, width) {
  const { canvas: target } = context;
  if (scratch?.width !== target.width || scratch?.height !== target.height) scratch = new OffscreenCanvas(target.width, target.height);
  const outline = scratch.getContext("2d");
  outline.globalCompositeOperation = "source-over";
  outline.clearRect(0, 0, scratch.width, scratch.height);
  outline.imageSmoothingEnabled = false;
  const [x, y, ...size] = box;
  for (let turn = 0; turn < 8; turn++) {
    const angle = (turn * Math.PI) / 4;
    outline.drawImage(picture, x + width * Math.cos(angle), y + width * Math.sin(angle), ...size);
  }
  outline.globalCompositeOperation = "destination-out";
  outline.drawImage(picture, ...box);
  context.drawImage(scratch, 0, 0);
}

function showLegend(chosen) {
  const list = $(".legend");
  const result = state.result;
  let entries = [];
  if (result && chosen === "effect") entries = [["both", "effect_both"], ["more", "effect_more"], ["less", "effect_less"]].map(([name, key]) => [EFFECT[name], t(key)]);
  else if (result?.classes) entries = result.facts.labels.filter((label) => label !== "background").map((label, index) => [CLASSES[index + result.facts.labels.includes("background")], word(label)]);
  else if (result && chosen !== "heat" && !result.facts.out_of_scope && countPixels(result)) entries = [[MASK, nameLabels(result.facts)]];
  list.hidden = !entries.length;
  list.replaceChildren(...entries.map(([rgb, name]) => {
    const item = make("li");
    item.append(make("i", null, { style: `background: ${css(rgb)}` }), name);
    return item;
  }));
}

/* Over each of two masks its caption, and whether that fits; the strip below has the measures of the first one. */
function showPaneTexts(isShown) {
  $(".of-first").hidden = !isShown;
  for (const [selector, result] of [[".first", state.result], [".second", state.second]]) {
    const pane = $(`.pane-text${selector}`);
    pane.hidden = !isShown;
    if (!isShown) continue;
    pane.querySelector("p").textContent = `“${quote(result.text)}”`;
    showVerdict(pane.querySelector("span"), result);
  }
}

function countPixels(result) {
  if (correcting()) return correcting().count;
  const [values, most] = result.classes ? [result.classes.values, 0] : [result.map.values, step()];
  let count = 0;
  for (const value of values) count += value > most;
  return count;
}

/* Says in words what the picture shows, and which answer it is of. */
function describe() {
  const { shown, result } = state;
  canvas.dataset.result = result ? state.request : "";
  canvas.dataset.name = shown ? shown.name : "";
  let label = shown ? shown.name : t("no_picture");
  if (result) label = fill("picture_label", { name: shown.name, label: result.facts.out_of_scope ? t("view_mask") : nameLabels(result.facts), count: countPixels(result) });
  canvas.setAttribute("aria-label", label);
}

// ------------------------------------------------------------------------------------------------ what visitors do

let factsTimer = 0;
function askFactsSoon() {
  $(".facts").classList.add("old");
  clearTimeout(factsTimer);
  factsTimer = setTimeout(askFacts, FACTS_DELAY);
}

async function askFacts() {
  const { request, asked, truth } = state;
  const at = threshold();
  if (!state.result) return;
  const answer = await ask("facts", { ...asked, threshold: at, truth });
  if (request !== state.request || at !== threshold() || truth !== state.truth) return;
  if (answer.error && truth) return failTruth(answer.error);
  if (answer.error) return fail(answer.error, false);
  state.result.facts = answer.facts;
  showFacts(answer.facts);
}

/* Nothing is said of a mask that cannot be compared, nor of the one before. */
function failTruth(error) {
  state.truth = null;
  fail(error, false);
  const { dice, iou, ...facts } = state.result.facts;
  state.result.facts = facts;
  showFacts(facts);
  compareAsked();
}

async function compareTruth(file) {
  const { request } = state;
  try {
    const { path } = await upload(file);
    if (request !== state.request || !state.result) return;
    Object.assign(state, { truth: path, error: null });
    showError();
    askFactsSoon();
  } catch {
    if (request === state.request && state.result) failTruth(inBoth("upload_failed"));
  }
}

let sliceRequest = 0;
async function changeSlice() {
  draw();
  const index = Number($(".slice").value) - 1;
  const mine = ++sliceRequest;
  if (state.result?.whole) return showSlice(index, state.request, mine);
  if (state.source?.kind !== "volume") return; // nor the slices of a row, before it is segmented
  const request = begin();
  const answer = await ask("look", { ...place(state.source), slice: index });
  if (request !== state.request || mine !== sliceRequest) return;
  if (answer.error) return fail(answer.error);
  await show(answer, request);
  draw();
  if (request === state.request) segment();
}

/* A slice of a volume that was segmented, with the masks of all captions that are shown. */
async function showSlice(index, request, mine) {
  const results = [state.result, state.second].filter(Boolean);
  const parts = await Promise.all(results.map((result) => ask("part", { ...result.asked, slice: index })));
  const failed = parts.find((part) => part.error);
  await Promise.all(parts.map((part) => failed || show(part, request, false)));
  if (request !== state.request || mine !== sliceRequest) return;
  if (failed) return fail(failed.error, false);
  results.forEach((result, number) => Object.assign(result, { picture: parts[number].picture, map: parts[number].map, slice: index, layers: undefined }));
  changeCorrected();
}

function setSide(side) {
  $(`[name=lvit-side][value=${side}]`).checked = true;
}

let readTimer = 0;
let reads = 0;
function readCaption() {
  showAsked();
  $(".chips").classList.add("old");
  clearTimeout(readTimer);
  const mine = ++reads;
  if (!text.value.trim()) return $(".chips").replaceChildren();
  readTimer = setTimeout(async () => {
    const { reading, error } = await ask("read", { text: text.value, ...settings() });
    if (mine === reads) showChips(reading, error);
  }, READ_DELAY);
}

function showChips(reading, error) {
  const chips = [];
  const add = (content, kind = "") => chips.push(make("span", content, { class: kind }));
  if (error) add(said(error), "unknown");
  if (reading && !reading.judged) add(t("not_judged"), "unknown");
  else if (reading && !reading.understood) add(said(reading.message) || t("not_understood"), "unknown");
  if (reading?.understood) {
    add(word(reading.family));
    if (reading.absent) add(t("absent"));
    for (const finding of reading.findings) for (const [name, value] of finding) add(`${word(name)}: ${value.split(" and ").map(wordByWord).join(" ") || t("none")}`);
  }
  for (const [typed, known] of reading?.corrections || []) add(`${typed} → ${known}`, "corrected");
  for (const unknown of reading?.unknown || []) add(`${unknown}?`, "unknown");
  $(".chips").classList.remove("old");
  $(".chips").replaceChildren(...chips);
}

const wordByWord = (value) => (word(value) !== value ? word(value) : value.split(" ").map(word).join(" "));

function listScales() {
  const chosen = $(".scale").value;
  const options = [[0, t("whole")], ...props.tile_sizes.map((size) => [size, fill("tiles", { size }) + (size === 176 ? ` (40×)` : size === 96 ? ` (20×)` : "")])];
  $(".scale").replaceChildren(...options.map(([size, name]) => make("option", name, { value: size })));
  $(".scale").value = chosen || "0";
}

function listAttributes() {
  const chosen = $(".family").value;
  $(".family").replaceChildren(...props.families.map((family) => make("option", word(family.name), { value: family.name })));
  $(".family").value = chosen || props.families[0].name;
  const family = props.families.find((one) => one.name === $(".family").value);
  $(".attributes").replaceChildren(...family.attributes.map((attribute) => {
    if (!attribute.multiple) {
      const label = make("label", word(attribute.name));
      const select = make("select", null, { "data-name": attribute.name });
      select.append(make("option", "", { value: "" }), ...attribute.values.map((value) => make("option", wordByWord(value), { value })));
      label.append(select);
      return label;
    }
    const group = make("fieldset", make("legend", word(attribute.name)), { class: "choices", "data-name": attribute.name });
    for (const value of attribute.values) {
      const label = make("label", make("input", null, { type: "checkbox", value }));
      label.append(make("span", word(value)));
      group.append(label);
    }
    return group;
  }));
}

/* The builder begins with what the image shows, unless the visitor is at it. */
function preselectFamily(family) {
  if (!family || family === $(".family").value || $(".builder").open) return;
  $(".family").value = family;
  listAttributes();
}

async function writeCaption() {
  const chosen = {};
  for (const select of $$(".attributes select")) chosen[select.dataset.name] = select.value;
  for (const group of $$(".attributes fieldset")) chosen[group.dataset.name] = [...group.querySelectorAll("input:checked")].map((input) => input.value);
  const typed = text.value;
  const answer = await ask("write", { family: $(".family").value, chosen });
  if (text.value !== typed) return; // who types meanwhile wants that
  if (answer.error) return fail(answer.error, false, ".write");
  state.error = null;
  showError();
  text.value = answer.text;
  readCaption();
}

async function takeFiles(files) {
  if (!files.length) return;
  const request = replaceSource({ files: [], names: files.map((file) => file.name) });
  $(".scale").value = "0";
  if (text.value === state.written) write("");
  try {
    const uploaded = await Promise.all(files.map((file) => upload(file)));
    if (request !== state.request) return;
    state.source.files = uploaded.map((file) => file.path);
    await openSource(request);
  } catch {
    if (request === state.request) {
      state.source = null;
      fail(inBoth("upload_failed"));
      showSource();
    }
  }
}

function zoomBy(factor, at = null) {
  const before = state.zoom;
  state.zoom = Math.min(Math.max(state.zoom * factor, 1), 40);
  const ratio = state.zoom / before;
  const [x, y] = at || [0, 0]; // as of fromMiddle
  state.pan = [x - (x - state.pan[0]) * ratio, y - (y - state.pan[1]) * ratio];
  stage.classList.toggle("zoomed", state.zoom > 1);
  draw();
}

/* A place on the screen in pixels of the canvas, from the middle of the picture's pane there. */
function fromMiddle(x, y) {
  const [box, ratio] = [canvas.getBoundingClientRect(), window.devicePixelRatio || 1];
  const at = [(x - box.left) * ratio, (y - box.top) * ratio];
  const pane = state.panes.findLast(([left, top]) => at[0] >= left && at[1] >= top) ?? state.panes[0];
  return at.map((value, axis) => value - pane[axis] - pane[axis + 2] / 2);
}

function toggleFullscreen() {
  if (document.fullscreenElement) document.exitFullscreen();
  else $(".viewer").requestFullscreen?.();
}

const pointers = new Map();
function movePointers(event) {
  if (moveBrush(event)) return;
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const ratio = window.devicePixelRatio || 1;
  const others = [...pointers.entries()].filter(([id]) => id !== event.pointerId);
  if (others.length) {
    const [, [x, y]] = others[0];
    const factor = Math.hypot(event.clientX - x, event.clientY - y) / Math.max(Math.hypot(last[0] - x, last[1] - y), 1);
    zoomBy(factor, fromMiddle((last[0] + x) / 2, (last[1] + y) / 2));
    state.pan = [state.pan[0] + ((event.clientX - last[0]) * ratio) / 2, state.pan[1] + ((event.clientY - last[1]) * ratio) / 2];
  } else if (state.zoom > 1) {
    state.pan = [state.pan[0] + (event.clientX - last[0]) * ratio, state.pan[1] + (event.clientY - last[1]) * ratio];
    draw();
  }
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
}

function pressKey(event) {
  if (correcting() && pressBrushKey(event)) return event.preventDefault();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const ratio = window.devicePixelRatio || 1;
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (event.key === "+" || event.key === "=") zoomBy(1.25);
  else if (event.key === "-") zoomBy(0.8);
  else if (event.key === "0") resetZoom();
  else if (event.key.toLowerCase() === "f") toggleFullscreen();
  else if (event.key === "PageDown" || event.key === "PageUp") {
    $(".slice").value = Number($(".slice").value) + (event.key === "PageDown" ? 1 : -1);
    changeSlice();
  } else if (moves[event.key] && state.zoom > 1) {
    state.pan = state.pan.map((value, axis) => value + moves[event.key][axis] * ratio);
    draw();
  } else return;
  event.preventDefault();
}

function setSplit(share) {
  state.split = Math.min(Math.max(share, 0), 100);
  $(".handle").style.left = `${state.split}%`;
  $(".handle").setAttribute("aria-valuenow", Math.round(state.split));
  draw();
}

function on(selector, event, action) {
  for (const node of $$(selector)) node.addEventListener(event, action);
}

function listExamples() {
  $(".examples").replaceChildren(...props.examples.map((example, index) => {
    const picture = make("img", null, { src: example.picture, alt: "" });
    const button = make("button", picture, { type: "button", title: example.text, "aria-label": `${example.name}: ${example.text}` });
    button.append(make("span", null, { "data-label": example.label }));
    button.tabIndex = index ? -1 : 0;
    button.addEventListener("click", () => chooseExample(index));
    button.addEventListener("keydown", (event) => {
      const place = { ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1, Home: 0, End: -1 }[event.key];
      if (place == null) return;
      const buttons = $$(".examples button");
      const next = buttons.at(place % buttons.length);
      buttons.forEach((one) => (one.tabIndex = one === next ? 0 : -1));
      next.focus();
      event.preventDefault();
    });
    return button;
  }));
}

function listen() {
  on(".drop input", "change", (event) => {
    takeFiles([...event.target.files]);
    event.target.value = "";
  });
  for (const name of ["pointerdown", "keydown"]) root.addEventListener(name, () => { state.used = true; }, { capture: true });
  // Text that comes into a field is left to the browser; files are taken wherever they come.
  const isText = (event, data) => event.target.closest?.("input, textarea") && data?.types.includes("text/plain");
  root.addEventListener("dragover", (event) => {
    if (isText(event, event.dataTransfer)) return;
    event.preventDefault();
    $(".drop").classList.toggle("over", event.dataTransfer.types.includes("Files"));
  });
  root.addEventListener("dragleave", () => $(".drop").classList.remove("over"));
  root.addEventListener("drop", (event) => {
    $(".drop").classList.remove("over");
    if (isText(event, event.dataTransfer)) return;
    event.preventDefault();
    takeFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    if (!isText(event, event.clipboardData)) takeFiles([...(event.clipboardData?.files || [])]);
  });

  on(".segment", "click", () => segment());
  on(".all", "click", () => (state.row == null ? segment({ all: true }) : segmentAll()));
  on(".stop", "click", (event) => {
    keepFocus(event, $(".segment"));
    stop();
  });
  on(".compare", "click", compareWords);
  for (const [field, action] of [[text, segment], [other, compareWords]]) {
    field.maxLength = props.max_caption;
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      action();
    });
  }
  text.addEventListener("input", readCaption);
  for (const setting of ["[name=lvit-side]", ".scale", ".model"]) on(setting, "change", () => {
    readCaption();
    compareAsked();
  });
  on(".family", "change", listAttributes);
  on(".write", "click", writeCaption);
  on(".language", "click", () => {
    state.language = state.language === "zh" ? "en" : "zh";
    translate();
    readCaption();
  });

  on("[name=lvit-view]", "change", changeView);
  on(".threshold", "input", () => {
    draw();
    compareAsked();
  });
  on(".opacity", "input", () => {
    state.opacities[kindOfOpacity()] = Number($(".opacity").value);
    draw();
  });
  on(".slice", "input", changeSlice);
  on(".in", "click", () => zoomBy(1.25));
  on(".out", "click", () => zoomBy(0.8));
  on(".fit", "click", resetZoom);
  on(".full", "click", toggleFullscreen);
  canvas.addEventListener("keydown", pressKey);
  canvas.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || document.fullscreenElement || document.activeElement === canvas)) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 400), fromMiddle(event.clientX, event.clientY));
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    beginStroke(event);
  });
  canvas.addEventListener("pointermove", movePointers);
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => {
    pointers.delete(event.pointerId);
    endStroke(event);
  });
  on(".handle", "pointerdown", (event) => event.target.setPointerCapture(event.pointerId));
  on(".handle", "pointermove", (event) => {
    if (!event.target.hasPointerCapture(event.pointerId)) return;
    const box = stage.getBoundingClientRect();
    setSplit((100 * (event.clientX - box.left)) / box.width);
  });
  on(".handle", "keydown", (event) => {
    const share = { ArrowLeft: state.split - 2, ArrowRight: state.split + 2, Home: 0, End: 100 }[event.key];
    if (share == null) return;
    event.preventDefault();
    setSplit(share);
  });
  new ResizeObserver(draw).observe(stage);

  on(".truth", "click", () => $(".truth-file").click());
  on(".truth-file", "change", (event) => {
    compareTruth(event.target.files[0]);
    event.target.value = "";
  });
  on(".menu", "toggle", (event) => event.target.open && $$(".menu[open]").forEach((menu) => (menu.open = menu === event.target)));
  document.addEventListener("click", (event) => $$(".menu[open]").forEach((menu) => !menu.contains(event.target) && (menu.open = false)));
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const menu = event.target.closest(".menu[open]");
    if (menu) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
  window.addEventListener("pagehide", stop);
}

function begin_page() {
  for (const [name, address] of Object.entries(props.links)) {
    $(`nav .${name}`).hidden = false;
    $(`nav .${name}`).href = address;
  }
  $(".device").textContent = props.device;
  const models = props.models.map((name) => make("option", name, { value: name }));
  if (props.any_model) $("#lvit-models").replaceChildren(...models);
  else {
    const select = make("select", null, { id: "lvit-model", class: "model" });
    select.append(...models);
    $(".model").replaceWith(select);
  }
  $(".model").value = props.models[0];
  listExamples();
  listen();
  listenToBrush();
  translate();
  setSplit(50);
  if (props.examples.length) openExamples();
}

/* The page opens with what a caption does: the first two examples side by side, if they are of one picture. */
async function openExamples() {
  const [first, second] = props.examples;
  const isOne = second?.name === first.name && !props.volumetric;
  $(".same").hidden = !isOne;
  await chooseExample(0);
  if (!isOne || state.used || state.source?.example !== 0) return;
  other.value = second.text;
  compareWords();
}

begin_page();
