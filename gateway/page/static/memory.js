// KV blocks of each worker: by state, and by the tenants who own those in use.

import { byId, h, keyed, s, setAttribute, setText } from "./dom.js";
import { count, percent, short } from "./format.js";

const STATES = [
  ["used", "in use"],
  ["cached", "cached"],
  ["free", "free"],
];
const COLOURS = 6; // of owners; the last is for all the others

export function showMemory(workers) {
  const sums = { used: 0, total: 0 };
  for (const { states } of workers) {
    sums.used += states.used ?? 0;
    sums.total += STATES.reduce((sum, [name]) => sum + (states[name] ?? 0), 0);
  }
  setText(byId("memory-note"), sums.total ? `${percent(sums.used / sums.total)} in use of ${short(sums.total)}` : "");
  keyed(byId("memory"), workers, (worker) => `${worker.model} ${worker.worker}`, row);
}

function row() {
  const name = h("b");
  const host = h("span", { class: "muted" });
  const states = stack("KV blocks by state");
  const owners = stack("KV blocks in use by tenant");
  return {
    element: h("div", { class: "worker-memory" }, h("p", {}, name, host), states.bar, states.legend, owners.bar, owners.legend),
    show(worker) {
      setText(name, worker.worker);
      setText(host, worker.states.host ? `${count(worker.states.host)} more in host memory` : "");
      states.show(STATES.map(([state, words]) => [words, worker.states[state] ?? 0, state]));
      const most = Object.entries(worker.owners).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
      const named = most.slice(0, COLOURS - 1);
      const rest = most.slice(COLOURS - 1).reduce((sum, [, blocks]) => sum + blocks, 0);
      // The colour follows the name's place in the alphabet, so that it does not change with the size.
      const places = named.map(([tenant]) => tenant).sort();
      const shown = named.map(([tenant, blocks]) => [tenant, blocks, `owner-${places.indexOf(tenant)}`]);
      if (rest > 0) shown.push(["others", rest, `owner-${COLOURS - 1}`]);
      owners.show(shown);
      owners.bar.toggleAttribute("hidden", shown.length === 0);
    },
  };
}

/** A stacked bar and its legend; `show([[words, number, class], ...])`. */
function stack(label) {
  const bar = s("svg", { class: "blocks", viewBox: "0 0 1000 14", preserveAspectRatio: "none", role: "img", "aria-label": label });
  const legend = h("ul", { class: "legend" });
  return {
    bar,
    legend,
    show(parts) {
      const total = Math.max(1, parts.reduce((sum, [, number]) => sum + number, 0));
      let x = 0;
      const placed = parts.map(([words, number, kind]) => {
        const width = (1000 * number) / total;
        const part = { words, number, kind, x, width };
        x += width;
        return part;
      });
      keyed(bar, placed, (part) => part.words, () => {
        const element = s("rect", { height: 14 });
        return {
          element,
          show({ x, width, kind }) {
            setAttribute(element, "x", x.toFixed(1));
            setAttribute(element, "width", Math.max(0, width - 1.5).toFixed(1));
            setAttribute(element, "class", kind);
          },
        };
      });
      keyed(legend, placed, (part) => part.words, legendRow);
      setAttribute(bar, "aria-label", `${label}: ${parts.map(([words, number]) => `${words} ${number}`).join(", ")}`);
    },
  };
}

function legendRow() {
  const swatch = s("rect", { width: 9, height: 9 });
  const words = h("span");
  const number = h("b");
  const key = s("svg", { class: "blocks", viewBox: "0 0 9 9", "aria-hidden": "true" }, swatch);
  return {
    element: h("li", {}, key, words, " ", number),
    show(part) {
      setAttribute(swatch, "class", part.kind);
      setText(words, part.words);
      setText(number, count(part.number));
    },
  };
}
