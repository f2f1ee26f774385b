"use strict";
// A training run: values under the pointer in every curve, and a slider through the samples.
const data = JSON.parse(document.getElementById("data").textContent);

// Four digits.
const format = (value) => {
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(3);
  return size >= 1000 ? value.toFixed(0) : value.toPrecision(4);
};

const nearest = (points, step) =>
  points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best));

for (const figure of document.querySelectorAll(".charts figure")) {
  const svg = figure.querySelector("svg");
  const { left, right, high } = svg.dataset;
  const cursor = svg.querySelector(".cursor");
  const output = figure.querySelector("output");
  const lines = { training: figure.dataset.name, validation: `validation/${figure.dataset.name}` };

  function show(x) {
    const step = ((x - left) / (right - left)) * high;
    const found = [];
    for (const [kind, name] of Object.entries(lines)) {
      if (data.series[name]) found.push([kind, ...nearest(data.series[name], step)]);
    }
    const at = Number(left) + (found[0][1] / high) * (right - left);
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    output.textContent = found
      .map(([kind, step, value]) => `${kind} ${format(value)} at step ${step.toLocaleString("en")}`)
      .join(" · ");
  }

  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    show(((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width);
  });
  show(Number(right));
}

const samples = document.getElementById("samples");
const slider = document.getElementById("step");
if (slider) {
  const pictures = [...samples.querySelectorAll(".sample")];
  const choose = () => {
    const index = Number(slider.value);
    pictures.forEach((picture, i) => picture.classList.toggle("current", i === index));
    samples.querySelector("output").textContent = pictures[index].querySelector("figcaption").textContent;
  };
  for (const picture of pictures) picture.querySelector("img").loading = "eager";
  samples.classList.add("one");
  slider.addEventListener("input", choose);
  choose();
}
