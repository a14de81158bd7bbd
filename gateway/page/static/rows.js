// The plain tables: the queue, the batch, workers and processes.

import { byId, h, keyed, setText } from "./dom.js";
import { count, DASH, ms, rate, slack } from "./format.js";
import { shareBar } from "./spark.js";

const TIERS = ["priority", "default", "flex"];

/** A row of cells; `show(texts)` takes a text, or [text, class], for each. */
function cells(classes) {
  const tds = classes.map((name) => h("td", { class: name || null }));
  return {
    element: h("tr", {}, ...tds),
    tds,
    fill(values) {
      values.forEach((value, index) => {
        const [text, kind] = Array.isArray(value) ? value : [value, ""];
        setText(tds[index], text);
        tds[index].className = [classes[index], kind].filter(Boolean).join(" ");
      });
    },
  };
}

const late = (value) => [slack(value), value !== null && value < 0 ? "bad" : ""];

export function showQueue(queue) {
  const rows = [...queue].sort((a, b) => TIERS.indexOf(a.tier) - TIERS.indexOf(b.tier) || (a.model < b.model ? -1 : 1));
  const models = new Set(rows.map((row) => row.model));
  byId("queue-empty").hidden = rows.length > 0;
  keyed(byId("queue"), rows, (row) => `${row.model} ${row.tier}`, () => {
    const made = cells(["", "number", "number", "number"]);
    return {
      element: made.element,
      show(row) {
        const name = models.size > 1 ? `${row.tier}, ${row.model}` : row.tier;
        made.fill([name, count(row.waiting), late(row.slack_ms.min), late(row.slack_ms.p50)]);
      },
    };
  });
}

/** `open(request)` shows its waterfall. */
export function showBatch(running, open) {
  byId("batch-empty").hidden = running.length > 0;
  const of = (phase) => running.filter((row) => row.phase === phase).length;
  const preempted = of("preempted");
  setText(
    byId("batch-note"),
    running.length ? `${of("prefill")} prefill, ${of("decode")} decode${preempted ? `, ${preempted} preempted` : ""}` : "",
  );
  keyed(byId("batch"), running, (row) => row.request, (first) => batchRow(first, open));
}

function batchRow(first, open) {
  const made = cells(["", "named", "wide", "", "", "number", "number"]);
  const button = h("button", { type: "button", class: "link mono", title: `Waterfall of ${first.request}`, onclick: () => open(first.request) }, tail(first.request));
  const bar = shareBar("share progress");
  const prompt = h("span");
  made.tds[0].append(button);
  made.tds[4].append(bar.element, prompt);
  return {
    element: made.element,
    show(row) {
      setText(made.tds[1], row.tenant);
      setText(made.tds[2], row.tier);
      setText(made.tds[3], row.phase);
      made.tds[3].className = row.phase === "preempted" ? "warn" : "";
      bar.show(row.computed / Math.max(1, row.prompt_tokens + row.generated));
      setText(prompt, `${count(Math.min(row.computed, row.prompt_tokens))} of ${count(row.prompt_tokens)}`);
      setText(made.tds[5], count(row.generated));
      const [text, kind] = late(row.slack_ms);
      setText(made.tds[6], text);
      made.tds[6].className = `number ${kind}`;
    },
  };
}

/** The end of a request's id, which differs from one to the next. */
const tail = (id) => (id.length > 9 ? `…${id.slice(-8)}` : id);

export function showWorkers(workers) {
  byId("workers-empty").hidden = workers.length > 0;
  keyed(byId("workers"), workers, (row) => `${row.model} ${row.worker} ${row.instance}`, () => {
    const made = cells(["", "", "number", "number", "number", "number"]);
    return {
      element: made.element,
      show(row) {
        const beat = row.heartbeat_age_ms;
        made.fill([
          [row.device, row.worker].filter(Boolean).join(" "),
          [row.state ?? DASH, row.state === "ready" ? "good" : "warn"],
          count(row.epoch),
          [ms(beat), beat !== null && beat > 1000 ? "bad" : ""],
          rate(row.steps_per_s),
          `${count(row.rows)} of ${count(row.slots)}`,
        ]);
        const name = made.tds[0];
        name.replaceChildren(h("b", {}, row.worker), h("span", { class: "sub" }, [row.device, row.model].filter(Boolean).join(" · ")));
      },
    };
  });
}

export function showProcesses(processes) {
  keyed(byId("processes"), processes, (row) => `${row.role} ${row.instance}`, () => {
    const made = cells(["", "", "", "number", "number"]);
    return {
      element: made.element,
      show: (row) => made.fill([row.role, row.instance, row.state ?? DASH, row.epoch ? String(row.epoch) : DASH, String(row.pid ?? DASH)]),
    };
  });
}
