// Tenants and keys: create, change, rotate, revoke. Nothing is done before it was confirmed; the audit has all of it.

import { confirmed, openDialog, toast } from "./dialogs.js";
import { h } from "./dom.js";
import { makeForm } from "./forms.js";
import { api } from "./session.js";

const TIERS = ["priority", "default", "flex"];
const FIELDS = [
  { name: "tier", label: "Tier", options: TIERS, hint: "flex has no contract" },
  { name: "ttft_ms", label: "First token, ms", kind: "number", hint: "empty: not promised" },
  { name: "ttft_per_1k_ms", label: "… per 1,000 prompt tokens", kind: "number", hint: "ms more" },
  { name: "tpot_ms", label: "Each next token, ms", kind: "number", hint: "empty: not promised" },
  { name: "attainment", label: "Promised share", kind: "number", hint: "such as 0.95" },
  { name: "weight", label: "Weight", kind: "number", hint: "of its share of service" },
  { name: "rpm", label: "Requests per minute", kind: "number", hint: "empty: no limit" },
  { name: "tpm", label: "Tokens per minute", kind: "number", hint: "empty: no limit" },
  { name: "concurrency", label: "Requests at once", kind: "number", hint: "empty: no limit" },
  { name: "daily_tokens", label: "Tokens per day", kind: "number", hint: "empty: no limit" },
  { name: "group", label: "Group", hint: "shares caches within it" },
];
//: Fields that an absent value leaves at its default, and that null is no value of.
const ALWAYS = new Set(["tier", "ttft_per_1k_ms", "attainment", "weight"]);

const shown = (value) => (value === null || value === undefined ? "none" : Array.isArray(value) ? value.join(", ") : String(value));
const tenantPath = (name) => `/admin/v1/tenants/${encodeURIComponent(name)}`;

/** All tenants. */
export async function openTenants() {
  const content = h("div");
  openDialog({ title: "Tenants and keys", content, size: "big" });
  await listTenants(content);
}

async function listTenants(content) {
  const { tenants } = await api("GET", "/admin/v1/tenants");
  const again = () => listTenants(content);
  const rows = tenants.map((tenant) =>
    h("tr", {},
      h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => openTenant(tenant.name, again) }, tenant.name)),
      h("td", {}, tenant.tier),
      h("td", { class: "number" }, shown(tenant.ttft_ms)),
      h("td", { class: "number" }, shown(tenant.tpot_ms)),
      h("td", { class: "number wide" }, shown(tenant.attainment)),
      h("td", { class: "number wide" }, shown(tenant.weight)),
      h("td", { class: "wide" }, shown(tenant.group))));
  const create = h("button", { type: "button", class: "primary", onclick: () => createTenant(again) }, "Create a tenant");
  content.replaceChildren(
    h("div", { class: "overflow" }, h("table", {},
      h("thead", {}, h("tr", {}, head("Tenant"), head("Tier"), head("First token, ms", "number"), head("Next, ms", "number"),
        head("Share", "number wide"), head("Weight", "number wide"), head("Group", "wide"))),
      h("tbody", {}, ...rows))),
    rows.length === 0 ? h("p", { class: "empty" }, "There is none yet.") : null,
    h("div", { class: "actions" }, create),
  );
  if (!isDialogAbove(content)) create.focus();
}

/** Whether another dialog is open above the one of `content`, which has the focus then. */
const isDialogAbove = (content) => [...document.querySelectorAll("dialog[open]")].at(-1) !== content.closest("dialog");

const head = (words, kind = null) => h("th", { scope: "col", class: kind }, words);

function createTenant(done) {
  const fields = [{ name: "name", label: "Name", required: true, hint: "letters, digits, - and _" },
    ...FIELDS.map((field) => ({ ...field, value: field.name === "tier" ? "default" : null }))];
  const form = makeForm({
    fields,
    action: "Create …",
    async submit(values) {
      const order = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));
      if (!(await confirmed({ title: `Create tenant ${order.name}?`, action: "Create tenant", content: changesTable({}, order) }))) return;
      await api("POST", "/admin/v1/tenants", order);
      dialog.close();
      toast(`Tenant ${order.name} is created. It needs a key.`);
      await done();
      openTenant(order.name, done);
    },
  });
  const dialog = openDialog({ title: "Create a tenant", content: form });
}

/** One tenant: its contract and its keys. `done` is called after a change. */
export async function openTenant(name, done = () => {}) {
  const content = h("div");
  const dialog = openDialog({ title: `Tenant ${name}`, content, size: "big" });
  await showTenant(name, content, dialog, done);
}

async function showTenant(name, content, dialog, done) {
  const [tenant, { keys }] = await Promise.all([
    api("GET", tenantPath(name)),
    api("GET", `/admin/v1/keys?tenant=${encodeURIComponent(name)}`),
  ]);
  const again = async () => {
    await showTenant(name, content, dialog, done);
    await done();
  };
  const form = makeForm({
    fields: FIELDS.map((field) => ({ ...field, value: tenant[field.name], required: ALWAYS.has(field.name) })),
    action: "Change contract …",
    async submit(values) {
      const change = Object.fromEntries(Object.entries(values).filter(([field, value]) => value !== tenant[field]));
      if (Object.keys(change).length === 0) return toast("Nothing is different.");
      if (!(await confirmed({ title: `Change tenant ${name}?`, action: "Change contract", content: changesTable(tenant, change) }))) return;
      await api("PATCH", tenantPath(name), change, { "if-match": `"${tenant.revision}"` });
      toast(`The contract of ${name} is changed.`);
      await again();
    },
  });
  content.replaceChildren(
    h("h3", {}, "Contract and limits"), form,
    h("h3", {}, "Keys"), keyTable(name, keys, again),
    h("div", { class: "actions" }, h("button", { type: "button", onclick: () => createKey(name, again) }, "Create a key …")),
  );
  if (!isDialogAbove(content)) content.querySelector("select").focus();
}

function changesTable(before, change) {
  const label = (name) => FIELDS.find((field) => field.name === name)?.label ?? name;
  const rows = Object.entries(change).map(([name, value]) =>
    h("tr", {}, h("th", { scope: "row" }, label(name)), h("td", {}, name in before ? shown(before[name]) : "–"), h("td", {}, shown(value))));
  return h("table", { class: "changes" }, h("thead", {}, h("tr", {}, head("Field"), head("Now"), head("Then"))), h("tbody", {}, ...rows));
}

// --- keys

function keyTable(tenant, keys, again) {
  if (keys.length === 0) return h("p", { class: "empty" }, "There is none yet.");
  const rows = keys.map((key) => {
    const isDead = key.state === "revoked" || key.state === "expired";
    const actions = isDead ? null : h("div", { class: "row-actions" },
      h("button", { type: "button", "aria-label": `Rotate key ${key.id}`, onclick: () => rotateKey(tenant, key, again) }, "Rotate …"),
      h("button", { type: "button", "aria-label": `Revoke key ${key.id}`, onclick: () => revokeKey(tenant, key, again) }, "Revoke …"));
    return h("tr", {}, h("th", { scope: "row", class: "mono" }, key.id), h("td", {}, h("span", { class: `tag ${isDead ? "bad" : "good"}` }, key.state)),
      h("td", { class: "wide" }, key.created), h("td", { class: "wide" }, key.revoked ?? key.expires ?? "never"),
      h("td", { class: "wide" }, [shown(key.models), key.tier_ceiling].filter((part) => part && part !== "none").join(", ") || "all"), h("td", {}, actions));
  });
  return h("div", { class: "overflow" }, h("table", {}, h("thead", {}, h("tr", {}, head("Key"), head("State"), head("Created", "wide"), head("Ends", "wide"), head("May use", "wide"),
    h("th", { scope: "col" }, h("span", { class: "unseen" }, "Actions")))), h("tbody", {}, ...rows)));
}

function createKey(tenant, again) {
  const form = makeForm({
    fields: [
      { name: "expires", label: "Expires", kind: "time", hint: "empty: never" },
      { name: "models", label: "Models", kind: "list", hint: "with commas; empty: all" },
      { name: "tier_ceiling", label: "Best tier", options: ["", ...TIERS], hint: "empty: that of the contract" },
    ],
    action: "Create key …",
    async submit(values) {
      if (!(await confirmed({ title: `Create a key for ${tenant}?`, action: "Create key", content: changesTable({}, values) }))) return;
      const made = await api("POST", "/admin/v1/keys", { tenant, ...values });
      dialog.close();
      showSecret(tenant, made);
      await again();
    },
  });
  const dialog = openDialog({ title: `Create a key for ${tenant}`, content: form });
}

async function rotateKey(tenant, key, again) {
  const form = makeForm({
    fields: [{ name: "grace_s", label: "Seconds that the old secret stays good", kind: "number", required: true, value: 3600 }],
    action: "Rotate key …",
    async submit(values) {
      const words = `Key ${key.id} of ${tenant} gets a new secret. The old one ends in ${values.grace_s} s.`;
      if (!(await confirmed({ title: "Rotate the key?", action: "Rotate key", content: h("p", {}, words) }))) return;
      const made = await api("POST", `/admin/v1/keys/${encodeURIComponent(key.id)}/rotate`, values);
      dialog.close();
      showSecret(tenant, made);
      await again();
    },
  });
  const dialog = openDialog({ title: `Rotate key ${key.id} of ${tenant}`, content: form, size: "small" });
}

async function revokeKey(tenant, key, again) {
  const content = h("p", {}, "Key ", h("code", {}, key.id), " of tenant ", h("b", {}, tenant), " ends at once. Requests with it are refused. This cannot be undone.");
  if (!(await confirmed({ title: "Revoke the key?", action: "Revoke key", isDangerous: true, typed: key.id, content }))) return;
  try {
    await api("DELETE", `/admin/v1/keys/${encodeURIComponent(key.id)}`);
    toast(`Key ${key.id} of ${tenant} is revoked.`);
  } catch (error) {
    toast(`It is not revoked: ${error.message}`);
  }
  await again();
}

function showSecret(tenant, made) {
  const input = h("input", { value: made.key, readonly: true, "aria-label": "The key", autofocus: true, onfocus: () => input.select() });
  const copy = h("button", { type: "button", onclick: async () => {
    input.select();
    try {
      await navigator.clipboard.writeText(made.key);
      copy.textContent = "Copied";
    } catch {
      copy.textContent = "Press Ctrl+C";
    }
  } }, "Copy");
  openDialog({
    title: `Key ${made.id} of ${tenant}`,
    size: "small",
    content: h("div", {}, h("p", {}, "This is the only time that it is shown. Headgate keeps a digest of it, and nothing else."),
      h("div", { class: "secret" }, input, copy)),
  });
}
