// One request through all actors: its spans in the order of time, with their events; one span's attributes below.

import { openDialog } from "./dialogs.js";
import { h, s } from "./dom.js";
import { ms } from "./format.js";
import { pairList } from "./inspect.js";
import { api, Problem } from "./session.js";

const TRIES = 12; // spans are written a second or so after they end
const AGAIN_MS = 1000;
const WIDTH = 1000;

export async function openWaterfall(request) {
  const content = h("div", { role: "status" }, h("p", { class: "muted" }, "Looking for its spans …"));
  let isOpen = true;
  openDialog({ title: `Request ${request}`, content, size: "big", onclose: () => { isOpen = false; } });
  let drawn = 0;
  for (let tries = 1; isOpen; tries += 1) {
    const spans = await found(request).catch((error) => {
      content.replaceChildren(h("p", { class: "error" }, `The spans cannot be read: ${error.message}`));
      return null;
    });
    if (!isOpen || spans === null) return;
    const isSettled = spans.length === drawn && spans.some((span) => span.kind === "server"); // processes write apart
    if (spans.length > drawn) draw(content, spans);
    drawn = spans.length;
    if (isSettled || tries >= TRIES) {
      if (spans.length === 0) content.replaceChildren(h("p", {}, "It has no spans: its trace was not sampled, they are gone from the store, or it still runs."));
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

async function found(request) {
  try {
    return (await api("GET", `/admin/v1/requests/${encodeURIComponent(request)}/spans`)).spans;
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return [];
    throw error;
  }
}

function draw(content, spans) {
  const start = Math.min(...spans.map((span) => span.start_unix_ns));
  const end = Math.max(...spans.map((span) => span.end_unix_ns));
  const x = (unixNs) => (WIDTH * (unixNs - start)) / Math.max(1, end - start);
  const focused = content.contains(document.activeElement) ? document.activeElement.dataset.span : undefined;
  const detail = content.querySelector(".detail") ?? h("div", { class: "detail", "aria-live": "polite" });
  const rows = inOrder(spans).map(([span, depth]) => row(span, depth, x, start, (chosen) => show(detail, chosen, start)));
  const columns = ["what", "when", "figure start", "figure"].map((name) => h("col", { class: name }));
  content.replaceChildren(
    h("p", {}, `${ms((end - start) / 1e6)} in all, ${spans.length} spans. Choose one for what it says.`),
    h("table", { class: "waterfall" }, h("colgroup", {}, ...columns),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Span"), h("th", { scope: "col" }, h("span", { class: "unseen" }, "When")),
        h("th", { scope: "col", class: "number start" }, "Begins"), h("th", { scope: "col", class: "number" }, "Takes"))),
      h("tbody", {}, ...rows)),
    detail,
  );
  const buttons = [...content.querySelectorAll("tbody button")];
  (buttons.find((button) => button.dataset.span === focused) ?? buttons[0])?.focus();
}

/** Spans with their depth, children below their parents, each by time. A span whose parent is missing is a root. */
function inOrder(spans) {
  const ids = new Set(spans.map((span) => span.span_id));
  const children = Map.groupBy(spans, (span) => (ids.has(span.parent_id) ? span.parent_id : ""));
  const ordered = [];
  const visit = (parent, depth) => {
    const sorted = (children.get(parent) ?? []).sort((a, b) => a.start_unix_ns - b.start_unix_ns);
    for (const span of sorted) {
      ordered.push([span, depth]);
      visit(span.span_id, depth + 1);
    }
  };
  visit("", 0);
  return ordered;
}

function row(span, depth, x, start, choose) {
  const left = x(span.start_unix_ns);
  const width = Math.max(3, x(span.end_unix_ns) - left);
  const bar = s("svg", { viewBox: `0 0 ${WIDTH} 16`, preserveAspectRatio: "none", "aria-hidden": "true" },
    s("rect", { class: "track", width: WIDTH, height: 16 }),
    s("rect", { class: span.error ? "span failed" : `span role-${span.role}`, x: Math.min(left, WIDTH - 3), y: 3, width, height: 10 }),
    ...span.events.map((event) => s("rect", { class: "event", x: x(event.unix_ns) - 1, y: 0, width: 2.5, height: 16 })));
  const name = h("button", { type: "button", class: "link", "data-span": span.span_id, title: `${span.role} ${span.instance}`, onclick: () => choose(span) }, span.name);
  const indent = h("span", { "aria-hidden": "true" }, "\u00a0".repeat(3 * depth));
  return h("tr", {}, h("th", { scope: "row" }, h("span", { class: "name" }, indent, name, h("small", {}, `\u00a0 ${span.role}`))), h("td", {}, bar),
    h("td", { class: "number start" }, ms((span.start_unix_ns - start) / 1e6)),
    h("td", { class: "number" }, ms((span.end_unix_ns - span.start_unix_ns) / 1e6)));
}

function show(detail, span, start) {
  const at = (unixNs) => ms((unixNs - start) / 1e6);
  const listed = (attributes) => Object.entries(attributes).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : String(value)]);
  const events = span.events.map((event) => [`${at(event.unix_ns)} ${event.name}`, listed(event.attributes).map(([name, value]) => `${name} ${value}`).join(", ") || "–"]);
  detail.replaceChildren(
    h("h3", {}, `${span.name}, ${span.role} ${span.instance}`),
    span.error ? h("p", { class: "bad" }, span.error) : "",
    pairList([...listed(span.attributes), ["trace", span.trace_id], ["span", span.span_id]]),
    events.length ? h("h3", {}, "Events") : "",
    pairList(events),
    span.links.length ? h("p", { class: "muted" }, `Links to ${span.links.length} other spans.`) : "",
  );
}
