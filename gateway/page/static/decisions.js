// The panel of decisions as they happen, newest first. While somebody points at the list, is in it or reads a dialog
// that was opened from it, it holds still.

import { isDialogOpen } from "./dialogs.js";
import { byId, h, keyed, setText } from "./dom.js";
import { clock, count, ms } from "./format.js";
import { inWords } from "./reasons.js";

const MOST = 120;
const MARKS = { admitted: ["✓ admitted", "good"], deferred: ["… deferred", "warn"], refused: ["✗ refused", "bad"] };

let outcome = "";
let latest = [];
let open = () => {};

/** Listen to the choices; `show(request)` is called when a request is chosen. */
export function startDecisions(show) {
  open = show;
  for (const choice of document.querySelectorAll(".choice")) {
    choice.addEventListener("click", () => {
      outcome = choice.dataset.outcome;
      for (const other of document.querySelectorAll(".choice")) other.setAttribute("aria-pressed", String(other === choice));
      render();
    });
  }
  const rows = byId("decisions");
  rows.addEventListener("pointerleave", () => render());
  rows.addEventListener("focusout", () => queueMicrotask(showDecisions));
}

/** Show those of `decisions` (oldest first), or what was shown last. */
export function showDecisions(decisions = latest) {
  latest = decisions;
  const rows = byId("decisions");
  const isHeld = rows.matches(":hover") || rows.contains(document.activeElement) || isDialogOpen();
  if (isHeld && rows.childElementCount > 0) {
    const newest = Number(rows.firstElementChild.dataset.sequence);
    const more = chosen().filter((decision) => decision.sequence > newest).length;
    setText(byId("decisions-note"), more > 0 ? `held while you look: ${count(more)} newer` : "");
  } else {
    render();
  }
}

const chosen = () => latest.filter((decision) => outcome === "" || decision.outcome === outcome);

function render() {
  const shown = chosen().slice(-MOST).reverse();
  setText(byId("decisions-note"), "");
  byId("decisions-empty").hidden = shown.length > 0;
  keyed(byId("decisions"), shown, (decision) => decision.sequence, row);
}

function row(decision) {
  const [mark, kind] = MARKS[decision.outcome] ?? [decision.outcome, "none"];
  const element = h(
    "tr",
    { "data-sequence": decision.sequence, "data-outcome": decision.outcome, "data-request": decision.request },
    h("td", {}, h("button", { type: "button", class: "link", title: `Waterfall of ${decision.request}`, onclick: () => open(decision.request) }, clock(decision.at))),
    h("td", {}, h("span", { class: `tag ${kind}` }, mark)),
    h("td", { class: "named", title: decision.tenant }, decision.tenant, h("span", { class: "sub" }, decision.tier)),
    h("td", { class: "why" }, ...why(decision)),
  );
  return { element, show() {} };
}

function why(decision) {
  const size = `${count(decision.prompt_tokens)} + ${count(decision.max_tokens)} tokens`;
  if (decision.outcome === "admitted") {
    const parts = [];
    if (decision.predicted_ttft_ms !== null) {
      const limit = decision.deadline_ms === null ? "" : ` of ${ms(decision.deadline_ms)}`;
      parts.push(`first token predicted ${ms(decision.predicted_ttft_ms)}${limit}`);
    }
    if (decision.predicted_tpot_ms !== null) parts.push(`then ${ms(decision.predicted_tpot_ms)} a token`);
    if (decision.deferred_ms) parts.push(`waited ${ms(decision.deferred_ms)}`);
    return [h("span", { class: "message" }, parts.join(", ") || "at once", h("span", { class: "muted" }, ` · ${size}`))];
  }
  const retry = decision.retry_after_ms === null ? "" : ` · come back in ${ms(decision.retry_after_ms)}`;
  return [
    h("span", { class: "message" }, decision.message || inWords(decision.reason)),
    h("span", { class: "sub" }, h("code", {}, decision.reason), ` · ${size}${retry}`),
  ];
}
