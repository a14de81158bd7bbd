// Small pictures in tables: a bullet (attained against promised), a sparkline, a share. All go from 0 to 100 %, but for
// the sparkline, which begins at 50 %: below that a contract is lost anyhow.

import { s, setAttribute } from "./dom.js";

const SPARK_FROM = 0.5;

/** An element and `show(share, promised)`; null is an empty track. */
export function bullet() {
  const fill = s("rect", { class: "fill", height: 8, width: 0, rx: 1 });
  const promised = s("rect", { class: "promised", y: 0, width: 1.5, height: 8 });
  const element = s(
    "svg",
    { class: "bullet", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", width: 100, height: 8, rx: 1 }),
    fill,
    promised,
  );
  return {
    element,
    show(share, attainment) {
      setAttribute(fill, "width", (100 * (share ?? 0)).toFixed(1));
      setAttribute(promised, "x", (100 * attainment - 0.75).toFixed(2));
      element.classList.toggle("short", share !== null && share < attainment);
    },
  };
}

/** The attained share of the last periods, and a mark under each that is below the promise. */
export function sparkline() {
  const line = s("path", { class: "line" });
  const promised = s("line", { class: "promised", x1: 0, x2: 120, "vector-effect": "non-scaling-stroke" });
  const under = s("path", { class: "under" });
  const element = s("svg", { class: "spark", viewBox: "0 0 120 28", role: "img" }, promised, line, under);
  return {
    element,
    show(history, attainment) {
      const y = (share) => 2 + 20 * (1 - Math.max(0, share - SPARK_FROM) / (1 - SPARK_FROM));
      const step = 120 / Math.max(1, history.length);
      let path = "";
      let marks = "";
      let isOpen = false;
      let below = 0;
      history.forEach((share, index) => {
        if (share === null) {
          isOpen = false;
          return;
        }
        const x = index * step;
        path += `${isOpen ? "L" : "M"}${x.toFixed(1)} ${y(share).toFixed(1)}L${(x + step).toFixed(1)} ${y(share).toFixed(1)}`;
        isOpen = true;
        if (share < attainment) {
          below += 1;
          marks += `M${x.toFixed(1)} 25h${step.toFixed(1)}v3h-${step.toFixed(1)}z`;
        }
      });
      setAttribute(line, "d", path);
      setAttribute(under, "d", marks);
      setAttribute(promised, "y1", y(attainment).toFixed(1));
      setAttribute(promised, "y2", y(attainment).toFixed(1));
      const judged = history.filter((share) => share !== null).length;
      const label = judged === 0 ? "nothing judged" : `below the promise in ${below} of ${judged} judged periods of 5 s`;
      setAttribute(element, "aria-label", label);
    },
  };
}

/** A bar from 0 to 1. */
export function shareBar(className = "share") {
  const fill = s("rect", { class: "fill", height: 8, width: 0 });
  const element = s(
    "svg",
    { class: className, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", width: 100, height: 8 }),
    fill,
  );
  return { element, show: (share) => setAttribute(fill, "width", (100 * Math.min(1, Math.max(0, share ?? 0))).toFixed(1)) };
}
