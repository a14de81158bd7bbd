// The reasons of refusals in words, and whose limit each is. The names are part of the API and stay beside the words.

const WORDS = {
  ttft_unattainable: "the first token would be late",
  tpot_unattainable: "tokens would be too slow",
  kv_exhausted: "no room for its KV",
  queue_full: "too many are deferred",
  deadline_exceeded: "its deadline passed in the queue",
  overloaded: "contracts need the capacity",
  no_worker: "no worker serves the model",
  model_unknown: "no such model",
  requests_per_minute: "its requests per minute are used up",
  tokens_per_minute: "its tokens per minute are used up",
  concurrency: "its concurrent requests are used up",
  daily_budget: "its tokens of the day are used up",
  unavailable: "a part of the stack does not answer",
  cancelled: "the client left",
};

const LIMITS = new Set(["requests_per_minute", "tokens_per_minute", "concurrency", "daily_budget"]);
const OTHERS = { no_worker: "no worker", unavailable: "unavailable", model_unknown: "unknown model", cancelled: "client left" };

export const inWords = (reason) => WORDS[reason] ?? reason;

/** One or two words for a headline: whose limit it was. */
export const kindOf = (reason) => OTHERS[reason] ?? (LIMITS.has(reason) ? "own limit" : "capacity");
