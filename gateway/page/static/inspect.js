// Dry runs of admission, and the audit.

import { openDialog } from "./dialogs.js";
import { h } from "./dom.js";
import { ms } from "./format.js";
import { makeForm } from "./forms.js";
import { inWords } from "./reasons.js";
import { api } from "./session.js";

/** What admission would say of a request now. It reserves nothing. */
export async function openExplain(models) {
  const { tenants } = await api("GET", "/admin/v1/tenants");
  const result = h("div", { role: "status", "aria-live": "polite", id: "explained" });
  const form = makeForm({
    fields: [
      { name: "tenant", label: "Tenant", options: tenants.map((tenant) => tenant.name), required: true },
      { name: "model", label: "Model", options: models, required: true },
      { name: "prompt_tokens", label: "Prompt tokens", kind: "number", value: 500, required: true },
      { name: "max_tokens", label: "Tokens to generate, at most", kind: "number", value: 256, required: true },
    ],
    action: "Explain",
    async submit(values) {
      result.replaceChildren();
      result.replaceChildren(explained(await api("POST", "/admin/v1/explain", values)));
    },
  });
  openDialog({ title: "Explain: what would be decided now", content: h("div", {}, form, result) });
}

function explained(decision) {
  const isRefused = decision.outcome === "refused";
  const pairs = [
    ["Reason", decision.reason ? `${decision.reason}: ${inWords(decision.reason)}` : null],
    ["In words", decision.message || null],
    ["First token predicted", fromSeconds(decision.predicted_ttft_s)],
    ["Each next token predicted", fromSeconds(decision.predicted_tpot_s)],
    ["Waits for admission", decision.deferred_s ? fromSeconds(decision.deferred_s) : null],
    ["Come back in", fromSeconds(decision.retry_after_s)],
    ["Requests left this minute", decision.quota?.requests_left ?? null],
    ["Tokens left this minute", decision.quota?.tokens_left ?? null],
  ];
  return h("div", { class: "detail" },
    h("p", {}, h("span", { class: `tag ${isRefused ? "bad" : "good"}` }, isRefused ? "✗ refused" : `✓ ${decision.outcome}`)),
    pairList(pairs));
}

const fromSeconds = (value) => (value === null || value === undefined ? null : ms(1000 * value));

/** A list of names and values; those that are null are left out. */
export function pairList(pairs) {
  return h("dl", { class: "pairs" }, ...pairs.filter(([, value]) => value !== null).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
}

/** The last changes and who made them. */
export async function openAudit() {
  const { audit } = await api("GET", "/admin/v1/audit?limit=100");
  const rows = audit.map((entry) => h("tr", {},
    h("td", {}, String(entry.at ?? entry.time ?? "")),
    h("td", {}, entry.action), h("td", { class: "mono" }, entry.target), h("td", { class: "mono wide" }, entry.actor),
    h("td", { class: "mono wide" }, entry.details && Object.keys(entry.details).length ? JSON.stringify(entry.details) : "")));
  const heads = [["Time"], ["Action"], ["Target"], ["Who", "wide"], ["Details", "wide"]];
  const content = rows.length
    ? h("div", { class: "overflow" }, h("table", {}, h("thead", {}, h("tr", {}, ...heads.map(([words, kind]) => h("th", { scope: "col", class: kind ?? null }, words)))), h("tbody", {}, ...rows)))
    : h("p", { class: "empty" }, "Nothing was changed yet.");
  openDialog({ title: "Audit: the last changes", content, size: "big" });
}
