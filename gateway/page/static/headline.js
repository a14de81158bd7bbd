// The one sentence at the top: is every contract kept, and who is being refused and why.

import { percent, plural } from "./format.js";
import { kindOf } from "./reasons.js";

/** `{state: "kept" | "broken" | "unknown", text, more}` of a frame: of the contracts, and of who was refused. */
export function headline(frame) {
  const { state, text } = contracts(frame.tenants);
  const away = frame.workers.length === 0 ? "No worker serves. " : "";
  return { state: away && state === "kept" ? "unknown" : state, text: away + text, more: refusals(frame.tenants) };
}

function contracts(tenants) {
  const broken = tenants.filter((tenant) => tenant.kept === false);
  const kept = tenants.filter((tenant) => tenant.kept === true);
  const judged = broken.length + kept.length;
  if (judged === 0) return { state: "unknown", text: "No contract was judged in the last 5 minutes." };
  if (broken.length === 0) {
    const which = kept.length === 1 ? "The contract" : kept.length === 2 ? "Both contracts" : `All ${kept.length} contracts`;
    return { state: "kept", text: `${which} kept.` };
  }
  const verb = broken.length === 1 ? "is" : "are";
  const named = broken.slice(0, 3).map(short);
  if (broken.length > 3) named.push(`${broken.length - 3} more`);
  return { state: "broken", text: `${broken.length} of ${plural(judged, "contract")} ${verb} not kept: ${named.join("; ")}.` };
}

function short(tenant) {
  const promised = tenant.contract.attainment;
  const parts = [];
  if (isShort(tenant.ttft, promised)) parts.push(`first token ${percent(tenant.ttft.share)}`);
  if (isShort(tenant.tpot, promised)) parts.push(`next tokens ${percent(tenant.tpot.share)}`);
  return `${tenant.name}, ${parts.join(" and ")} in time of ${percent(promised)} promised`;
}

export const isShort = (promise, promised) => promise.share !== null && promise.share < promised;

function refusals(tenants) {
  const kinds = new Map();
  let total = 0;
  for (const tenant of tenants) {
    for (const [reason, number] of Object.entries(tenant.refused)) {
      if (number === 0) continue;
      total += number;
      const key = `${tenant.name}, ${kindOf(reason)}`;
      kinds.set(key, (kinds.get(key) ?? 0) + number);
    }
  }
  if (total === 0) return "Nobody was refused in the last 5 minutes.";
  const most = [...kinds].sort((a, b) => b[1] - a[1]);
  const named = most.slice(0, 3).map(([key, number]) => (most.length > 1 ? `${key} (${number})` : key));
  if (most.length > 3) named.push("others");
  return `${plural(total, "refusal")} in the last 5 minutes: ${named.join("; ")}.`;
}
