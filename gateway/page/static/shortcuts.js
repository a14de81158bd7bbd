// Keys for what is done often. They rest while somebody types or a dialog is open.

import { isDialogOpen, openDialog } from "./dialogs.js";
import { byId, h } from "./dom.js";

const BUTTONS = { t: "open-tenants", e: "open-explain", a: "open-audit", d: "switch-theme", "?": "open-help" };
const HELP = [
  ["?", "this help"],
  ["t", "tenants and keys"],
  ["e", "explain: a dry run of admission"],
  ["a", "audit"],
  ["d", "dark or light"],
  ["0", "the headline"],
  ["1 … 6", "contracts, decisions, steps, memory and queue, batch, workers"],
  ["Tab, Enter", "go to a tenant or a request, and open it"],
  ["Esc", "close a dialog"],
];

export function startShortcuts() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || isDialogOpen()) return;
    if (event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement) return;
    const panel = event.key === "0" ? byId("headline") : /^[1-6]$/.test(event.key) ? byId(`panel-${event.key}`) : null;
    if (panel) panel.focus();
    else if (event.key in BUTTONS) byId(BUTTONS[event.key]).click();
    else return;
    event.preventDefault();
  });
}

export function openHelp() {
  const rows = HELP.flatMap(([key, words]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, words)]);
  openDialog({ title: "Keyboard", content: h("dl", { class: "shortcuts" }, ...rows), size: "small" });
}
