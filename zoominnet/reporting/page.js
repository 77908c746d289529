"use strict";
// Without scripts the page lacks only this: hiding runs, large pictures, and values where the pointer is.
(() => {
  const labels = [...document.querySelectorAll(".runs label")];
  labels.forEach((label, run) => {
    const box = label.querySelector("input");
    box.hidden = false;
    box.addEventListener("change", () => {
      document.querySelectorAll(`.run-${run}`).forEach((each) => each.classList.toggle("off", !box.checked));
    });
  });

  document.querySelectorAll(".tile svg").forEach((picture) => {
    picture.addEventListener("click", () => picture.parentElement.classList.toggle("large"));
  });

  const hint = document.querySelector(".hint");
  const line = (text, run) => {
    const row = document.createElement("div");
    if (run !== undefined) row.append(labels[run].querySelector(".swatch").cloneNode());
    row.append(text);
    return row;
  };
  document.querySelectorAll(".chart").forEach((chart) => {
    const points = JSON.parse(chart.dataset.points);
    chart.addEventListener("pointermove", (event) => {
      const place = chart.getBoundingClientRect();
      const scale = chart.viewBox.baseVal.width / place.width;
      const x = (event.clientX - place.left) * scale;
      const y = (event.clientY - place.top) * scale;
      const far = (point) => Math.hypot(point[1] - x, (point[2] - y) / 8);
      const nearest = new Map();
      for (const point of points) {
        if (chart.querySelector(`.run-${point[0]}.off`)) continue;
        const best = nearest.get(point[0]);
        if (!best || far(point) < far(best)) nearest.set(point[0], point);
      }
      if (!nearest.size) return;
      hint.replaceChildren();
      let where = null;
      for (const [run, , , at, value] of nearest.values()) {
        if (at !== where) hint.append(line(at));
        where = at;
        hint.append(run === null ? line(value) : line(`${labels[run].textContent}: ${value}`, run));
      }
      hint.hidden = false;
      const right = document.documentElement.clientWidth - hint.offsetWidth - 8;
      hint.style.left = `${Math.max(8, Math.min(event.pageX + 14, right))}px`;
      hint.style.top = `${event.pageY + 14}px`;
    });
    chart.addEventListener("pointerleave", () => { hint.hidden = true; });
  });
})();
