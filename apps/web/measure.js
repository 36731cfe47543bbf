import { readConditions } from "./device.js";
import { ask } from "./host.js";

const GRACE_MS = 3000; // for the inference in flight; then the worker is ended

/** Measures one model at a time, each in a worker of its own, with the screen kept on. */
export class Meter {
  #worker = null;
  #lock = null;
  #settle = null;
  stopped = null;

  /** Hold the screen on for a series of measurements. */
  async begin() {
    this.stopped = null;
    this.#lock = await navigator.wakeLock?.request("screen").catch(() => null);
  }

  async end() {
    await this.#lock?.release();
    this.#lock = null;
  }

  /** End the measurement in progress early, and those after it; `why` goes with what is kept. */
  stop(why) {
    this.stopped ??= why;
    if (!this.#worker) return;
    this.#worker.postMessage({ stop: why });
    const settle = this.#settle;
    setTimeout(() => settle?.({ failed: why }), GRACE_MS);
  }

  /** Time one job; `told` hears {phase} and {samples, fraction}. Gives {threads, measurement} or {failed}. */
  async measure(job, told) {
    if (job.protocol.cool_down_seconds) {
      told({ phase: "Cooling down" });
      await this.#pause(job.protocol.cool_down_seconds);
    }
    if (this.stopped) return { failed: this.stopped };
    told({ phase: "Fetching the model" });
    const [model, inputs] = await Promise.all([
      ask(`api/models/${job.id}`).then((answer) => answer.arrayBuffer()),
      ask(`api/models/${job.id}/inputs`).then((answer) => answer.arrayBuffer()),
    ]);
    await checkDigest(model, job.sha256);
    const before = await readConditions();
    const outcome = await this.#inWorker({ ...job, model, inputs }, told);
    if (outcome.measurement) Object.assign(outcome.measurement, { before, after: await readConditions() });
    return outcome;
  }

  async #inWorker(job, told) {
    if (this.stopped) return { failed: this.stopped };
    const worker = new Worker("worker.js");
    try {
      return await new Promise((resolve) => {
        [this.#worker, this.#settle] = [worker, resolve];
        worker.onerror = (event) => resolve({ failed: event.message || "the worker did not start" });
        worker.onmessage = ({ data }) => (data.measurement || data.failed ? resolve(data) : told(data));
        worker.postMessage(job, [job.model]);
      });
    } finally {
      worker.terminate();
      [this.#worker, this.#settle] = [null, null];
    }
  }

  async #pause(seconds) {
    const end = performance.now() + seconds * 1000;
    while (!this.stopped && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

/** Refuse a model that is not the one that the computer announced; only secure pages can tell. */
async function checkDigest(model, sha256) {
  if (!crypto.subtle) return;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", model));
  const found = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  if (found !== sha256) throw new Error("The model arrived damaged. Measure again.");
}
