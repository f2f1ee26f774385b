"use strict";
// One picture enlarged; turning from one to the next in its place shows where models differ.
const viewer = document.getElementById("viewer");
const pairs = [...document.querySelectorAll("article.pair")];
const figuresOf = (pair) => [...pair.querySelectorAll("figure")];
let shown = { pair: 0, figure: 0 };

function show(pair, figure) {
  shown = { pair, figure };
  const chosen = figuresOf(pairs[pair])[figure];
  viewer.querySelector("b").textContent = pairs[pair].dataset.name;
  viewer.querySelector("span").textContent = chosen.querySelector("figcaption").textContent;
  viewer.querySelector("img").src = chosen.querySelector("img").src;
  viewer.querySelector("img").alt = chosen.querySelector("img").alt;
  if (!viewer.open) viewer.showModal();
}

pairs.forEach((pair, i) => {
  figuresOf(pair).forEach((figure, j) => {
    figure.querySelector("button").addEventListener("click", () => show(i, j));
  });
});

viewer.addEventListener("click", () => viewer.close());
viewer.addEventListener("keydown", (event) => {
  const across = { ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0;
  const along = { ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0;
  if (!across && !along) return;
  event.preventDefault();
  const count = figuresOf(pairs[shown.pair]).length;
  show(
    (shown.pair + along + pairs.length) % pairs.length,
    (shown.figure + across + count) % count,
  );
});
