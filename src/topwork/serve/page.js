"use strict";
// One page, no library: images go to /models/NAME/predict one by one, so that each answer is shown as soon as it is there.

const SHOWN = 5;          // bars before "All classes"
const AT_ONCE = 4;        // images under way at once
const $ = id => document.getElementById(id);
const percent = share => (100 * share).toFixed(1) + "%";
let key = "", limits = null, models = [], under = 0, begun;
const queue = [];

const headers = () => key ? { "X-API-Key": key } : {};

async function read(response) {
  const kind = response.headers.get("content-type") || "";
  const body = kind.includes("json") ? await response.json() : { detail: await response.text() };
  if (!response.ok) throw Object.assign(new Error(body.detail || response.statusText), { status: response.status });
  return body;
}

async function start() {
  try {
    models = (await read(await fetch("models", { headers: headers() }))).models;
    limits = await read(await fetch("limits", { headers: headers() }));
  } catch (error) {
    $("unlock").hidden = error.status !== 401;
    $("status").textContent = error.status === 401 ? (key ? "That is not the key." : "") : "The server cannot be reached: " + error.message;
    return;
  }
  $("unlock").hidden = true;
  $("status").textContent = "";
  $("models").hidden = models.length < 2;
  $("model").replaceChildren(...models.map(m => new Option(m.name, m.name)));
  $("limits").textContent = `Up to ${Math.round(limits.image_bytes / 2 ** 20)} MB each. Images are looked at and forgotten.`;
  tell();
}

function tell() {
  const m = models.find(m => m.name === $("model").value) || models[0];
  $("title").textContent = m.name;
  document.title = m.name + " – topwork";
  const few = m.classes.slice(0, 12).join(", ") + (m.classes.length > 12 ? ", …" : "");
  const measure = m.several_labels ? "label-ranking average precision" : "right";
  $("about").textContent = `${m.classes.length} classes: ${few}${few.endsWith("…") ? "" : "."} ${percent(m.accuracy)} ${measure} `
    + `(95%: ${percent(m.accuracy_low)} to ${percent(m.accuracy_high)}), measured ${m.measured_on === "out-of-sample" ? "out of sample" : "on the " + m.measured_on}.`;
}

async function take(files) {
  const images = [...files].filter(f => f instanceof File);
  if (!images.length) { $("status").textContent = "There was no image in it."; return; }
  await begun;  // which models there are
  if (!models.length) { $("status").textContent ||= "The server cannot be asked yet."; return; }
  for (const file of images) {
    const card = $("card").content.cloneNode(true).firstElementChild;
    const picture = card.querySelector(".picture");
    const address = URL.createObjectURL(file);
    picture.src = address;
    picture.alt = file.name || "the pasted image";
    picture.onload = () => URL.revokeObjectURL(address);
    picture.onerror = () => { URL.revokeObjectURL(address); picture.hidden = true; };
    card.querySelector("figcaption").textContent = file.name || "pasted";
    card.querySelector(".answer").textContent = "…";
    $("results").prepend(card);
    queue.push([file, card, $("model").value || models[0].name]);
  }
  next();
}

function next() {
  while (under < AT_ONCE && queue.length) {
    under += 1;
    ask(...queue.shift()).finally(() => { under -= 1; next(); });
  }
  const left = under + queue.length;
  $("status").textContent = left ? `${left} ${left === 1 ? "image is" : "images are"} being looked at …` : $("results").children.length ? "Done." : "";
}

async function ask(file, card, model) {
  try {
    if (file.size > limits.image_bytes) throw new Error(`too large: ${Math.round(file.size / 2 ** 20)} MB; at most ${Math.round(limits.image_bytes / 2 ** 20)} MB are read`);
    const form = new FormData();
    form.append("image", file, file.name || "pasted");
    const address = `models/${encodeURIComponent(model)}/predict?heat_map=true&nearest=4`;
    const answer = await read(await fetch(address, { method: "POST", body: form, headers: headers() }));
    show(card, answer.results[0], models.find(m => m.name === model));
  } catch (error) {
    card.querySelector(".answer").textContent = "No answer";
    const wrong = card.querySelector(".wrong");
    wrong.textContent = error.message;
    wrong.hidden = false;
  }
}

function show(card, result, model) {
  const said = card.querySelector(".answer");
  said.textContent = result.labels.join(", ") || "none of its labels";
  if (result.probability !== null) {
    const share = document.createElement("span");
    share.className = "share";
    share.textContent = " " + percent(result.probability);
    said.append(share);
  }
  card.querySelector(".unknown").hidden = !result.unknown;
  const entries = Object.entries(result.probabilities);
  const bars = card.querySelector(".bars"), more = card.querySelector(".more");
  bars.replaceChildren(...entries.slice(0, SHOWN).map(bar));
  more.hidden = entries.length <= SHOWN;
  more.onclick = () => {
    const open = more.getAttribute("aria-expanded") === "true";
    more.setAttribute("aria-expanded", String(!open));
    more.textContent = open ? "All classes" : "Fewer classes";
    bars.replaceChildren(...entries.slice(0, open ? SHOWN : undefined).map(bar));
  };
  if (result.heat_map) {
    const heat = card.querySelector(".heat"), looked = card.querySelector(".looked");
    heat.src = result.heat_map;
    heat.alt = `Where the model looked for ${result.label}`;
    looked.hidden = false;
    looked.querySelector("input").onchange = event => { heat.hidden = !event.target.checked; };
  }
  if (result.nearest && result.nearest.length) {
    const near = card.querySelector(".near");
    near.querySelector("ul").replaceChildren(...result.nearest.map(n => {
      const item = document.createElement("li");
      item.textContent = `${n.label}, alike ${percent(n.similarity)}`;
      return item;
    }));
    near.hidden = false;
  }
}

function bar([name, share]) {
  const row = document.createElement("div");
  row.className = "bar";
  row.setAttribute("role", "listitem");
  const label = document.createElement("span");
  label.textContent = name;
  const rail = document.createElement("span");
  rail.className = "rail";
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 100 10");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const rect = document.createElementNS(ns, "rect");
  rect.setAttribute("width", String(100 * share));
  rect.setAttribute("height", "10");
  svg.append(rect);
  rail.append(svg);
  const value = document.createElement("span");
  value.className = "value";
  value.textContent = percent(share);
  row.append(label, rail, value);
  return row;
}

for (const id of ["files", "camera"]) $(id).onchange = event => { take([...event.target.files]); event.target.value = ""; };
$("model").onchange = tell;
$("unlock").onsubmit = event => { event.preventDefault(); key = $("key").value; begun = start(); };
addEventListener("dragover", event => { event.preventDefault(); $("drop").classList.add("over"); });
addEventListener("dragleave", event => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
addEventListener("drop", event => { event.preventDefault(); $("drop").classList.remove("over"); take(event.dataTransfer.files); });
addEventListener("paste", event => { if (event.clipboardData.files.length) take(event.clipboardData.files); });
begun = start();
