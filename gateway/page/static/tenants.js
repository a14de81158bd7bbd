// The panel of contracts: what each tenant was promised and what it got.

import { byId, h, keyed, setAttribute, setText } from "./dom.js";
import { count, DASH, ms, percent } from "./format.js";
import { isShort } from "./headline.js";
import { inWords } from "./reasons.js";
import { bullet, shareBar, sparkline } from "./spark.js";

/** Show them; `open(name)` is called when one is chosen. */
export function showTenants(tenants, open) {
  byId("tenants-empty").hidden = tenants.length > 0;
  keyed(byId("tenants"), tenants, (tenant) => tenant.name, () => row(open));
}

function row(open) {
  const name = h("button", { type: "button", class: "link" });
  const tier = h("span", { class: "sub" });
  const kept = h("span", { class: "tag" });
  const ttft = promise("First token");
  const tpot = promise("Next tokens");
  const history = sparkline();
  const share = shareBar();
  const shareText = h("span");
  const weight = h("span", { class: "sub" });
  const running = h("span");
  const refused = h("span");
  const admitted = h("span", { class: "sub" });
  const element = h(
    "tr",
    {},
    h("th", { scope: "row", class: "named" }, name, tier),
    h("td", { class: "verdict" }, kept),
    h("td", { class: "promised-of" }, ttft.element),
    h("td", { class: "promised-of" }, tpot.element),
    h("td", { class: "wide" }, history.element),
    h("td", { class: "wide share-of" }, share.element, " ", shareText, weight),
    h("td", { class: "number wide" }, running),
    h("td", { class: "number" }, refused, admitted),
  );
  let shown = "";
  name.addEventListener("click", () => open(shown));
  return {
    element,
    show(tenant) {
      shown = tenant.name;
      const { contract } = tenant;
      setText(name, tenant.name);
      setAttribute(name, "title", tenant.name);
      setText(tier, tenant.tier);
      showKept(kept, tenant);
      ttft.show(tenant.ttft, contract.attainment, contract.ttft_ms, ttftPromise(contract));
      tpot.show(tenant.tpot, contract.attainment, contract.tpot_ms, ms(contract.tpot_ms));
      history.show(tenant.history, contract.attainment);
      share.show(tenant.service_share);
      setText(shareText, percent(tenant.service_share));
      setText(weight, `weight ${tenant.weight}`);
      setText(running, `${count(tenant.running)} · ${count(tenant.waiting)}`);
      const total = Object.values(tenant.refused).reduce((sum, number) => sum + number, 0);
      setText(refused, count(total));
      refused.className = total > 0 ? "refusals bad" : "refusals";
      setText(admitted, `${count(tenant.admitted)} admitted`);
      const reasons = Object.entries(tenant.refused).map(([reason, number]) => `${number} ${inWords(reason)}`);
      setAttribute(refused, "title", [...reasons, `${count(tenant.deferred)} deferred`].join("; "));
    },
  };
}

/** With a plus where a longer prompt may take longer: how much is in the tenant's dialog. */
const ttftPromise = ({ ttft_ms, ttft_per_1k_ms }) => (ttft_ms === null ? DASH : ms(ttft_ms) + (ttft_per_1k_ms > 0 ? "+" : ""));

function showKept(tag, tenant) {
  const { ttft_ms, tpot_ms } = tenant.contract;
  const [text, kind] =
    ttft_ms === null && tpot_ms === null
      ? ["none", "none"]
      : tenant.kept === null
        ? ["– not judged", "none"]
        : tenant.kept
          ? ["✓ kept", "good"]
          : ["✗ not kept", "bad"];
  setText(tag, text);
  tag.className = `tag ${kind}`;
}

function promise(label) {
  const share = h("b");
  const promised = h("span", { class: "muted" });
  const bar = bullet();
  const times = h("span", { class: "sub" });
  const element = h("div", { class: "promise", "data-label": label }, h("div", { class: "figures" }, share, promised), bar.element, times);
  return {
    element,
    show(attained, attainment, limit, words) {
      element.hidden = limit === null && attained.share === null;
      setText(share, percent(attained.share));
      share.className = isShort(attained, attainment) ? "bad" : "";
      setText(promised, `of ${percent(attainment)}`);
      bar.show(attained.share, attainment);
      setText(times, `p95 ${ms(attained.p95_ms)} of ${words}`);
      setAttribute(element, "title", `${count(attained.kept)} of ${count(attained.judged)} in time; median ${ms(attained.p50_ms)}`);
    },
  };
}
