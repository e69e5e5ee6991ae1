"use strict";
// Everything from the service is written with textContent: it may contain anything.
const COLOURS = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255"];
const SIDES = [0, 1];
const at = id => document.getElementById(id);
const MAX_KEPT = 200, MAX_SENT_SIDE = 1024;  // pictures that stay in memory; pixels of one too large to be sent as it is
let token = "", dims = [], asked = null, mapped = null, points = null, timer = null;
let facts = {}, chosen = null, pointed = null;  // chosen: the picture that is searched for, in base64
const pictures = new Map();  // id → the address of its picture, once it is there

class Refused extends Error {}

async function call(path, body, signal) {
  const headers = token ? {authorization: `Bearer ${token}`} : {};
  if (body) headers["content-type"] = "application/json";
  const answer = await fetch(path, {method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal});
  const content = await answer.json();
  if (!answer.ok) throw new Refused(content.error ? content.error.message : `status ${answer.status}`);
  return content;
}

// Run what may fail; the sentence is shown. An answer that is no longer wanted is no failure.
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.name !== "AbortError") say(error instanceof Refused ? error.message : `no answer: ${error.message}`);
  }
}

function say(text) {
  at("said").textContent = text;
  if (at("main").hidden) at("about").textContent = text;
}

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const dimOf = side => dims[Number(at(`dim-${side}`).value)];

async function open() {
  facts = await call("/health");
  if (!facts.dims) throw new Refused("this service wants its token");
  dims = facts.dims;
  SIDES.forEach(side => {
    at(`dim-${side}`).max = dims.length - 1;
    at(`dim-${side}`).value = side ? dims.length - 1 : Math.max(0, Math.floor((dims.length - 1) / 2));
  });
  const changed = facts.changes.map(sentence => ` ${sentence}.`).join("");
  at("about").textContent = `${facts.documents.toLocaleString("en")} ${facts.pictures ? "pictures" : "documents"}, embedded in ${facts.width} dims of which any `
    + `prefix of ${dims.join(", ")} is an embedding by itself.${changed}`;
  at("token-form").hidden = true;
  at("main").hidden = false;
  showDims();
  await draw();
}

// The picture of a document, fetched with the token and shown when it is there; its text stands in its place till then.
function picture(id, text) {
  const made = element("img");
  made.alt = text;
  if (!pictures.has(id)) {
    pictures.set(id, fetchPicture(id));
    const oldest = pictures.keys().next().value;
    if (pictures.size > MAX_KEPT) {
      pictures.get(oldest).then(URL.revokeObjectURL, () => {});
      pictures.delete(oldest);
    }
  }
  pictures.get(id).then(address => { made.src = address; }, error => {
    made.title = error.message;
    pictures.delete(id);
  });
  return made;
}

async function fetchPicture(id) {
  const answer = await fetch(`/picture?id=${encodeURIComponent(id)}`, {headers: token ? {authorization: `Bearer ${token}`} : {}});
  if (!answer.ok) throw new Refused((await answer.json()).error.message);
  return URL.createObjectURL(await answer.blob());
}

// Search for a picture of the user. One that is too large for a request is made smaller first.
async function choose(file) {
  if (!file) return;
  const sent = 4 * Math.ceil(file.size / 3) > facts.max_body - 1000 ? await smaller(file) : file;
  const encoded = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(sent);
  });
  if (!encoded || encoded === "data:") throw new Refused(`${file.name} is empty`);
  if (chosen) forget();
  const shown = element("img"), away = element("button", "remove");
  shown.alt = "";
  shown.src = URL.createObjectURL(sent);
  away.type = "button";
  away.addEventListener("click", forget);
  at("chosen").replaceChildren(shown, element("span", `what is nearest to ${file.name}`), away);
  at("chosen").hidden = false;
  at("text").value = "";
  chosen = {name: file.name, encoded, address: shown.src};
  await search();
}

function forget() {
  if (chosen) URL.revokeObjectURL(chosen.address);
  chosen = null;
  at("chosen").hidden = true;
  at("file").value = "";
}

async function smaller(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Refused(`${file.name} is too large, and this browser cannot read it to make it smaller`);
  }
  const scale = Math.min(1, MAX_SENT_SIDE / Math.max(bitmap.width, bitmap.height)), canvas = element("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise(resolve => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

function showDims() {
  SIDES.forEach(side => { at(`shown-${side}`).textContent = dimOf(side); });
  at("map-dim").textContent = dimOf(0);
}

async function search() {
  const text = chosen ? "" : at("text").value;
  if (!chosen && !text.trim()) return;
  if (asked) asked.abort();
  asked = new AbortController();
  const {signal} = asked, k = Number(at("k").value), found = [];
  const query = chosen ? {images: [chosen.encoded]} : {texts: [text]}, name = chosen ? chosen.name : text;
  for (const side of SIDES) {  // one after the other, so that neither waits for the other
    found.push(await call("/search", {...query, k, dim: dimOf(side), plan: "auto", characters: 300}, signal));
  }
  if (signal.aborted) return;  // a newer search has begun since the last answer came
  const ids = found.map(answer => new Set(answer.results[0].hits.map(hit => hit.id)));
  const shared = [...ids[0]].filter(id => ids[1].has(id));
  found.forEach((answer, side) => {
    at(`time-${side}`).textContent = `${answer.ms} ms`;
    at(`hits-${side}`).replaceChildren(...answer.results[0].hits.map(hit => {
      const item = element("li", undefined, shared.includes(hit.id) ? "both" : "");
      const id = element("span", hit.id, "id");
      if (facts.pictures) item.append(picture(hit.id, hit.text));
      item.append(element("span", hit.score.toFixed(4), "score"), id);
      if (!facts.pictures || hit.text !== hit.id) item.append(element("p", hit.text));
      return item;
    }));
  });
  const most = Math.max(...ids.map(set => set.size));
  const unknown = found[0].results[0].unknown ? " No token of this query is in the vocabulary; the ranking is arbitrary." : "";
  at("overlap").dataset.query = name;
  at("overlap").textContent = `overlap@${k}: ${shared.length} of ${most} are found at ${dimOf(0)} and at ${dimOf(1)} dims; `
    + `they are ${facts.pictures ? "framed in blue" : "bold"}.${unknown}`;
  say("");
}

async function draw() {
  if (mapped) mapped.abort();
  mapped = new AbortController();
  points = await call(`/map?dim=${dimOf(0)}`, undefined, mapped.signal);
  const together = points.together === null ? "" : ` ${(100 * points.together).toFixed(1)} % have their nearest neighbour, at `
    + `${points.dim} dims, in their own cluster.`;
  at("map-note").textContent = `${points.x.length.toLocaleString("en")} documents by the two principal components of their `
    + `prefixes, in the colours of clusters of the whole embedding.${together}`;
  at("legend").replaceChildren(...points.central.map((text, cluster) => {
    const item = element("li"), dot = element("i");
    dot.style.backgroundColor = COLOURS[cluster];
    item.append(dot, ...(points.ids ? [picture(points.central_ids[cluster], text)] : []), text);
    item.title = text;
    return item;
  }));
  paint();
}

function place(i, width, height) {
  return [width / 2 + points.x[i] * (width / 2 - 10), height / 2 - points.y[i] * (height / 2 - 10)];
}

function paint(chosen) {
  const canvas = at("map"), {width, height} = canvas.getBoundingClientRect(), scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  pen.globalAlpha = 0.7;
  const dot = (i, radius) => {
    pen.fillStyle = COLOURS[points.cluster[i]];
    pen.beginPath();
    pen.arc(...place(i, width, height), radius, 0, 2 * Math.PI);
    pen.fill();
  };
  points.x.forEach((_, i) => dot(i, 2.5));
  pen.globalAlpha = 1;
  if (chosen !== undefined) dot(chosen, 7);
}

function point(event) {
  if (!points) return;
  const box = at("map").getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  let best, least = 900;  // pixels, squared
  points.x.forEach((_, i) => {
    const [px, py] = place(i, box.width, box.height), distance = (px - x) ** 2 + (py - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  if (best !== undefined && best !== pointed) {
    at("point").replaceChildren(...(points.ids ? [picture(points.ids[best], points.texts[best])] : []), points.texts[best]);
  }
  pointed = best;
  paint(best);
}

at("token-form").addEventListener("submit", event => {
  event.preventDefault();
  token = at("token").value.trim();
  attempt(open);
});
at("search").addEventListener("submit", event => {
  event.preventDefault();
  if (chosen && at("text").value.trim()) forget();
  attempt(search);
});
if (at("file")) {
  at("file").addEventListener("change", () => attempt(() => choose(at("file").files[0])));
  document.addEventListener("paste", event => {
    if (event.clipboardData.files.length) attempt(() => choose(event.clipboardData.files[0]));
  });
  document.addEventListener("dragover", event => {
    event.preventDefault();
    at("pick").classList.add("over");
  });
  document.addEventListener("dragleave", () => at("pick").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    at("pick").classList.remove("over");
    if (!at("main").hidden) attempt(() => choose(event.dataTransfer.files[0]));
  });
}
SIDES.forEach(side => at(`dim-${side}`).addEventListener("input", () => {
  showDims();
  clearTimeout(timer);
  timer = setTimeout(() => {
    attempt(search);
    if (points && points.dim !== dimOf(0)) attempt(draw);
  }, 150);
}));
at("k").addEventListener("change", () => attempt(search));
at("map").addEventListener("pointermove", point);
at("map").addEventListener("pointerdown", point);
window.addEventListener("resize", () => points && paint());
if (at("token-form").hidden) attempt(open);
