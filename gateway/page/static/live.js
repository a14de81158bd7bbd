// The frames of /admin/v1/live, merged: what the page shows is one state, and how old it is.

const MAX_STEPS = 400;
const MAX_DECISIONS = 200;
const FIRST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 10_000;

/**
 * Calls `onFrame(frame)` with whole frames (steps and decisions of before are in them) and `onState(name)` with
 * connecting, live, lost or paused. A hidden tab takes no stream. `check` is asked when a stream is refused.
 */
export class Live {
  constructor({ onFrame, onState, check }) {
    this.onFrame = onFrame;
    this.onState = onState;
    this.check = check;
    this.source = null;
    this.timer = 0;
    this.retryMs = FIRST_RETRY_MS;
    this.heardAt = null; // of performance.now()
    this.steps = [];
    this.decisions = [];
    this.state = "";
    document.addEventListener("visibilitychange", () => this.follow());
  }

  /** Begin, or go on: what the visibility of the tab asks for. */
  follow() {
    if (document.hidden) {
      this.stop();
      this.tell("paused");
    } else if (this.source === null) {
      this.open();
    }
  }

  /** Seconds since the last frame; null before the first. */
  age() {
    return this.heardAt === null ? null : (performance.now() - this.heardAt) / 1000;
  }

  open() {
    this.stop();
    this.tell(this.heardAt === null ? "connecting" : "lost");
    this.source = new EventSource("/admin/v1/live");
    this.source.addEventListener("frame", (event) => this.heard(JSON.parse(event.data)));
    this.source.addEventListener("error", () => this.lost());
  }

  stop() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  heard(frame) {
    this.retryMs = FIRST_RETRY_MS;
    this.heardAt = performance.now();
    this.steps = last(frame.full ? frame.steps : this.steps.concat(frame.steps), MAX_STEPS);
    this.decisions = last(frame.full ? frame.decisions : this.decisions.concat(frame.decisions), MAX_DECISIONS);
    this.tell("live");
    this.onFrame({ ...frame, steps: this.steps, decisions: this.decisions });
  }

  lost() {
    this.stop();
    this.tell("lost");
    this.timer = setTimeout(async () => {
      await this.check().catch(() => {});
      if (!document.hidden) this.open();
    }, this.retryMs);
    this.retryMs = Math.min(2 * this.retryMs, LONGEST_RETRY_MS);
  }

  tell(state) {
    if (state !== this.state) this.onState((this.state = state));
  }
}

const last = (list, most) => (list.length > most ? list.slice(-most) : list);
