// The page: one stream of frames, shown by each panel.

import { openTenant, openTenants } from "./admin.js";
import { showDecisions, startDecisions } from "./decisions.js";
import { toast } from "./dialogs.js";
import { byId, h, keyed, setText } from "./dom.js";
import { count, percent, rate } from "./format.js";
import { headline } from "./headline.js";
import { openAudit, openExplain } from "./inspect.js";
import { Live } from "./live.js";
import { showMemory } from "./memory.js";
import { showBatch, showProcesses, showQueue, showWorkers } from "./rows.js";
import { signOut, startSession } from "./session.js";
import { openHelp, startShortcuts } from "./shortcuts.js";
import { repaintSteps, showSteps, startSteps } from "./steps.js";
import { showTenants } from "./tenants.js";
import { openWaterfall } from "./waterfall.js";

const STALE_S = 5;
const ANNOUNCE_MS = 10_000;
const STATES = { connecting: "connecting", live: "live", lost: "reconnecting", paused: "paused" };
const MARKS = { kept: "✓", broken: "✗", unknown: "–" };

let frame = null;
let announcedAt = -ANNOUNCE_MS;

/** Whatever goes wrong with an action that has no form is told, not swallowed. */
const telling = (action) => (...given) => Promise.resolve(action(...given)).catch((error) => toast(error.message));

const openRequest = telling(openWaterfall);
const chooseTenant = telling((name) => openTenant(name));

function show(latest) {
  frame = latest;
  setText(byId("model"), frame.models.join(", ") || "no model");
  setText(byId("gateway"), frame.gateway);
  showHeadline();
  showVitals();
  showTenants(frame.tenants, chooseTenant);
  showDecisions(frame.decisions);
  showSteps(frame.steps);
  showMemory(frame.kv);
  showQueue(frame.queue);
  showBatch(frame.running, openRequest);
  showWorkers(frame.workers);
  showProcesses(frame.processes);
  showAge();
}

function showHeadline() {
  const { state, text, more } = headline(frame);
  byId("headline").dataset.state = state;
  setText(byId("headline-mark"), MARKS[state]);
  setText(byId("headline-text"), text);
  setText(byId("headline-more"), more);
  document.title = `${MARKS[state]} Headgate`;
  if (performance.now() - announcedAt >= ANNOUNCE_MS) {
    announcedAt = performance.now();
    setText(byId("announcer"), `${text} ${more}`); // read out when it differs, and not four times a second
  }
}

function showVitals() {
  const sum = (list, value) => list.reduce((total, item) => total + (value(item) ?? 0), 0);
  const used = sum(frame.kv, (row) => row.states.used);
  const blocks = used + sum(frame.kv, (row) => (row.states.free ?? 0) + (row.states.cached ?? 0));
  const vitals = [
    ["running", count(sum(frame.tenants, (tenant) => tenant.running))],
    ["waiting", count(sum(frame.tenants, (tenant) => tenant.waiting))],
    ["steps/s", rate(sum(frame.workers, (worker) => worker.steps_per_s))],
    ["KV in use", blocks ? percent(used / blocks) : "–"],
  ];
  keyed(byId("vitals"), vitals, ([name]) => name, ([name]) => {
    const value = h("dd");
    return { element: h("div", {}, h("dt", {}, name), value), show: ([, text]) => setText(value, text) };
  });
}

function showState(state) {
  byId("connection").dataset.state = state;
  setText(byId("connection-text"), STATES[state]);
  showAge();
}

/** Old facts must not look like new ones. */
function showAge() {
  const age = live.age();
  const isOld = age !== null && age > STALE_S && live.state !== "paused";
  byId("frozen").hidden = !isOld;
  if (isOld) setText(byId("frozen"), `What you see is ${Math.round(age)} s old: nothing has come from the gateway since.`);
}

const isDark = () => {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function showTheme() {
  setText(byId("switch-theme"), isDark() ? "Light" : "Dark");
  repaintSteps();
}

function switchTheme() {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem("headgate-theme", next);
  showTheme();
}

const live = new Live({ onFrame: show, onState: showState, check: startCheck });

function startCheck() {
  return fetch("/session", { cache: "no-store" }).then((answer) => {
    if (answer.status === 401) location.assign("/login");
  });
}

byId("open-tenants").addEventListener("click", telling(openTenants));
byId("open-explain").addEventListener("click", telling(() => openExplain(frame?.models ?? [])));
byId("open-audit").addEventListener("click", telling(openAudit));
byId("open-help").addEventListener("click", openHelp);
byId("switch-theme").addEventListener("click", switchTheme);
byId("sign-out").addEventListener("click", telling(signOut));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
startDecisions(openRequest);
startSteps();
startShortcuts();
showTheme();
setInterval(showAge, 1000);
startSession().then(() => live.follow(), (error) => toast(error.message));
