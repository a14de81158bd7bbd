// The last few hundred steps: tokens of prefill and decode, stacked, and the time of each, predicted and actual.
// Chart.js comes as a classic script and is the global Chart.

import { byId, h, setAttribute, setText } from "./dom.js";
import { count, ms, rate } from "./format.js";

const SHOWN = 300;
const EVERY_MS = 450; // drawing costs some 10 ms a chart

let charts = null;
let latest = [];
let worker = "";
let drawnAt = 0;
let drawn = "";
let isDue = 0;

export function startSteps() {
  byId("steps-worker").addEventListener("change", (event) => {
    worker = event.target.value;
    draw();
  });
}

/** Show steps (oldest first); drawing follows at most twice a second. */
export function showSteps(steps) {
  latest = steps;
  const wait = drawnAt + EVERY_MS - performance.now();
  if (wait <= 0) draw();
  else if (!isDue) isDue = setTimeout(draw, wait);
}

/** Colours are of another theme now. */
export function repaintSteps() {
  charts?.forEach((chart) => chart.destroy());
  charts = null;
  drawn = "";
  draw();
}

function draw() {
  clearTimeout(isDue);
  isDue = 0;
  drawnAt = performance.now();
  showWorkers();
  const steps = latest.filter((step) => worker === "" || nameOf(step) === worker).slice(-SHOWN);
  const newest = steps.at(-1);
  const mark = newest ? `${worker} ${steps.length} ${nameOf(newest)} ${newest.number}` : "";
  if (mark === drawn) return;
  drawn = mark;
  charts ??= [tokenChart(), timeChart()];
  const [tokens, times] = charts;
  // Of the same length whatever there is, so that a step always has the same width.
  const padded = [...Array(SHOWN - steps.length).fill(null), ...steps];
  fill(tokens, padded, (step) => step.prefill_tokens, (step) => step.decode_tokens);
  fill(times, padded, (step) => step.actual_ms, (step) => step.predicted_ms);
  describe(steps);
}

function fill(chart, steps, ...values) {
  chart.data.labels = steps.map((step) => step?.number ?? "");
  chart.steps = steps;
  values.forEach((value, index) => {
    chart.data.datasets[index].data = steps.map((step) => (step === null ? null : value(step)));
  });
  chart.update("none");
}

function describe(steps) {
  if (steps.length === 0) return setText(byId("steps-note"), "none yet");
  const sum = (value) => steps.reduce((total, step) => total + value(step), 0);
  const newest = steps.at(-1);
  const span_s = newest.at - steps[0].at;
  const prefill = sum((step) => step.prefill_tokens);
  const decode = sum((step) => step.decode_tokens);
  const actual = sum((step) => step.actual_ms) / steps.length;
  const off = sum((step) => Math.abs(step.actual_ms - step.predicted_ms)) / Math.max(1e-9, sum((step) => step.actual_ms));
  const pace = span_s > 0 ? `, ${rate((prefill + decode) / span_s)} tokens/s` : "";
  setText(byId("steps-note"), `last ${count(steps.length)} in ${ms(1000 * span_s)}${pace} · mean ${ms(actual)} · prediction off by ${Math.round(100 * off)} %`);
  setAttribute(byId("steps-tokens"), "aria-label", `Tokens of the last ${steps.length} steps: ${count(prefill)} prefill, ${count(decode)} decode`);
  setAttribute(byId("steps-time"), "aria-label", `Time of the last ${steps.length} steps: mean ${ms(actual)}, the newest ${ms(newest.actual_ms)}, predicted ${ms(newest.predicted_ms)}`);
}

const nameOf = (step) => `${step.model} ${step.worker}`;

function showWorkers() {
  const select = byId("steps-worker");
  const names = [...new Set(latest.map(nameOf))].sort();
  if (worker !== "" && !names.includes(worker)) names.push(worker);
  const known = [...select.options].slice(1).map((option) => option.value);
  select.hidden = names.length < 2;
  if (known.join() === names.join()) return;
  select.replaceChildren(h("option", { value: "" }, "all workers"), ...names.map((name) => h("option", { value: name }, name)));
  select.value = worker;
}

// --- Chart.js

/** A colour as it is now: custom properties say light and dark, computed colours are one of them. */
function colour(name) {
  const probe = h("span", { hidden: true });
  document.body.append(probe);
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function tokenChart() {
  const bar = (label, name) => ({
    type: "bar", label, backgroundColor: colour(name), stack: "tokens", barPercentage: 1, categoryPercentage: 1, data: [],
  });
  return chart("steps-tokens", [bar("prefill", "prefill"), bar("decode", "decode")], true);
}

function timeChart() {
  const line = (label, more) => ({ type: "line", label, pointRadius: 0, data: [], spanGaps: false, ...more });
  const actual = line("actual", { borderColor: colour("ink"), borderWidth: 1, fill: true, backgroundColor: colour("free"), order: 2 });
  const predicted = line("predicted", { borderColor: colour("accent"), borderWidth: 1.5, borderDash: [4, 3], order: 1 });
  return chart("steps-time", [actual, predicted], false);
}

function chart(id, datasets, stacked) {
  const ink = colour("muted");
  const made = new Chart(byId(id), {
    data: { labels: [], datasets },
    options: {
      animation: false,
      responsive: true,
      maintainAspectRatio: false,
      events: ["mousemove", "mouseout", "touchstart"],
      interaction: { mode: "index", intersect: false },
      font: { family: getComputedStyle(document.body).fontFamily },
      layout: { padding: { top: 4, right: 0 } },
      plugins: { legend: { display: false }, tooltip: { animation: false, callbacks: { title: (items) => headOf(made, items) } } },
      scales: {
        x: { stacked, grid: { display: false }, border: { color: colour("line-strong") }, ticks: { display: false } },
        y: {
          stacked,
          beginAtZero: true,
          afterFit: (scale) => { scale.width = 44; }, // both charts have the same steps above each other
          border: { display: false },
          grid: { color: colour("line") },
          ticks: { color: ink, maxTicksLimit: 5, font: { size: 10 } },
        },
      },
    },
  });
  return made;
}

function headOf(made, items) {
  const step = made.steps?.[items[0]?.dataIndex];
  return step ? `${step.worker}, step ${step.number}: ${step.rows} rows` : "";
}
