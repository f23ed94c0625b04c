"use strict";
// Pointing at an engine in a chart, a legend or a table shows it everywhere; a click keeps it shown.
const members = [...document.querySelectorAll("[data-series]")];
const seriesAt = (node) => node.closest?.("[data-series]")?.dataset.series ?? null;
let kept = null;

function show(series) {
  document.body.classList.toggle("picking", series !== null);
  for (const member of members) member.classList.toggle("picked", member.dataset.series === series);
}

document.addEventListener("pointerover", (event) => show(seriesAt(event.target) ?? kept));
document.addEventListener("click", (event) => {
  const series = seriesAt(event.target);
  if (series === null && kept === null) return;
  kept = series === kept ? null : series;
  show(kept);
});
// Paper has nothing to click on: what is folded is printed unfolded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
