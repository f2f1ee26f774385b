"use strict";
// The table of pairs: opening, sorting, finding; checkerboards and differences drawn on demand.
const data = JSON.parse(document.getElementById("data").textContent);
const table = document.getElementById("pairs");
const controls = document.getElementById("controls");
const bodies = [...table.tBodies]; // bodies[i] belongs to data.pairs[i], however they are sorted
const VIEWS = ["a", "b", "overlay", "fused", "checker", "difference"];

const detailOf = (body) => body.querySelector(".detail");
const buttonOf = (body) => body.querySelector("th button");
const shownBodies = () => [...table.tBodies].filter((body) => !body.hidden);

// Drawing. All pictures are data URIs, so the canvas may be read.

async function pixelsOf(body, view) {
  const image = body.querySelector(`[data-view=${view}] img`);
  image.loading = "eager";
  await image.decode();
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

const luma = (p, i) => 0.299 * p[i] + 0.587 * p[i + 1] + 0.114 * p[i + 2];

function checkerboard(source, fused) {
  const { width, height } = fused;
  const out = new ImageData(width, height);
  const square = Math.max(4, Math.round(Math.max(width, height) / 8));
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i += 4) {
      const odd = (Math.floor(x / square) + Math.floor(y / square)) % 2;
      out.data.set((odd ? fused : source).data.subarray(i, i + 4), i);
    }
  }
  return out;
}

function difference(a, b, fused, reference, gain) {
  const out = new ImageData(fused.width, fused.height);
  for (let i = 0; i < out.data.length; i += 4) {
    const [la, lb] = [luma(a.data, i), luma(b.data, i)];
    const base = reference === "a" ? la : reference === "b" ? lb : Math.max(la, lb);
    const d = gain * (luma(fused.data, i) - base);
    const v = Math.min(1, Math.abs(d) / 255);
    // Black where equal, orange where brighter, blue where darker.
    const [red, green, blue] = d > 0 ? [255, 150, 40] : [70, 170, 255];
    out.data.set([red * v, green * v, blue * v, 255], i);
  }
  return out;
}

async function render(body, view) {
  if (view === "checker") {
    const views = [controls.checker.value, "fused"];
    return checkerboard(...(await Promise.all(views.map((v) => pixelsOf(body, v)))));
  }
  if (view === "difference") {
    const [a, b, fused] = await Promise.all(["a", "b", "fused"].map((v) => pixelsOf(body, v)));
    return difference(a, b, fused, controls.reference.value, Number(controls.gain.value));
  }
  return pixelsOf(body, view);
}

async function paint(canvas, body, view) {
  const pixels = await render(body, view);
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

async function paintComputed(body) {
  for (const canvas of detailOf(body).querySelectorAll("canvas")) {
    await paint(canvas, body, canvas.parentElement.dataset.view);
  }
}

// One pair after the other, so that the page answers meanwhile; a newer call takes over.
let painting = 0;

async function paintAll() {
  const mine = ++painting;
  for (const body of table.tBodies) {
    if (mine !== painting) return;
    if (!detailOf(body).hidden) await paintComputed(body);
  }
}

// Opening.

function open(body, isOpen) {
  detailOf(body).hidden = !isOpen;
  buttonOf(body).setAttribute("aria-expanded", isOpen);
  if (!isOpen) return;
  for (const image of detailOf(body).querySelectorAll("img")) image.loading = "eager";
}

function toggle(body) {
  open(body, detailOf(body).hidden);
  if (!detailOf(body).hidden) paintComputed(body);
}

for (const body of bodies) {
  buttonOf(body).addEventListener("click", () => toggle(body));
  body.querySelector(".strip").addEventListener("click", () => toggle(body));
  body.addEventListener("pointerenter", () => mark(body));
  body.addEventListener("focusin", () => mark(body));
  for (const button of detailOf(body).querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => enlarge(body, button.dataset.view));
  }
}

controls.all.addEventListener("click", () => {
  const isOpen = shownBodies().some((body) => detailOf(body).hidden);
  for (const body of shownBodies()) open(body, isOpen);
  paintAll();
  controls.all.textContent = isOpen ? "Close all" : "Open all";
});

for (const name of ["reference", "gain", "checker"]) {
  controls[name].addEventListener("change", paintAll);
}

controls.addEventListener("submit", (event) => event.preventDefault());

// Finding, and marking a pair's values in the histograms.

controls.find.addEventListener("input", () => {
  const wanted = controls.find.value.toLocaleLowerCase();
  bodies.forEach((body, i) => {
    body.hidden = !data.pairs[i].name.toLocaleLowerCase().includes(wanted);
  });
  controls.found.textContent = wanted ? `${shownBodies().length} of ${bodies.length}` : "";
});

function mark(body) {
  const pair = data.pairs[bodies.indexOf(body)];
  data.metrics.forEach((metric, m) => {
    const svg = document.querySelector(`[data-metric=${metric}] svg`);
    if (!svg) return;
    const [low, high, value] = [Number(svg.dataset.low), Number(svg.dataset.high), pair.values[m]];
    const x = value === null ? -9 : (svg.viewBox.baseVal.width * (value - low)) / (high - low);
    const line = svg.querySelector(".mark");
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  });
}

// Sorting: the first click puts the worst, or the first name, on top.

function valueOf(pair, key) {
  if (key === "name") return pair.name;
  if (key === "score") return pair.score;
  return pair.values[data.metrics.indexOf(key)];
}

function sortBy(key, descending) {
  const sign = descending ? -1 : 1;
  const order = bodies.map((_, i) => i).sort((i, j) => {
    const [x, y] = [valueOf(data.pairs[i], key), valueOf(data.pairs[j], key)];
    if (x === null || y === null) return (x === null) - (y === null) || i - j;
    const compared = key === "name" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return sign * compared || i - j;
  });
  table.append(...order.map((i) => bodies[i]));
}

for (const button of table.tHead.querySelectorAll("[data-key]")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const key = button.dataset.key;
    const now = head.getAttribute("aria-sort");
    const descending = now ? now === "ascending" : data.lower_is_better.includes(key);
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sortBy(key, descending);
  });
}

// One view enlarged; flipping between views in place shows what fusion changed.

const viewer = document.getElementById("viewer");
let enlarged = { body: null, view: "fused" };

function enlarge(body, view) {
  enlarged = { body, view };
  const caption = body.querySelector(`[data-view=${view}] + figcaption`).textContent;
  viewer.querySelector("b").textContent = data.pairs[bodies.indexOf(body)].name;
  viewer.querySelector("span").textContent = caption;
  paint(viewer.querySelector("canvas"), body, view);
  if (!viewer.open) viewer.showModal();
}

viewer.addEventListener("click", () => viewer.close());
viewer.addEventListener("keydown", (event) => {
  const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const along = { ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!across && !along) return;
  event.preventDefault();
  const pictured = shownBodies().filter((body) => body.querySelector("[data-view]"));
  const step = (list, item, by) => list[(list.indexOf(item) + by + list.length) % list.length];
  if (across) enlarge(enlarged.body, step(VIEWS, enlarged.view, across));
  else enlarge(step(pictured, enlarged.body, along), enlarged.view);
});

if (bodies.length) toggle(bodies[0]);
