const [TOKEN, QUEUE] = ["mf-bench token", "mf-bench queue"];
const RETRY_MS = 5000;
const SEND_MS = 30_000; // then the network counts as lost
const FINAL = [400, 404, 409, 413, 415, 422];

/** The token from the address, or the one that this app was paired with before. */
export function pairingToken() {
  const given = location.hash.slice(1);
  if (given) remember(TOKEN, given);
  return given || recall(TOKEN) || "";
}

/** Ask the computer for something; its refusals become errors with its own words and their `status`. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, Authorization: `Bearer ${pairingToken()}` };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw Object.assign(new Error(said.error ?? `The computer answered ${answer.status}.`), { status: answer.status });
}

/** Results on their way to the computer. They outlive the page, and are sent until they have arrived. */
export class Outbox {
  #waiting = JSON.parse(recall(QUEUE) ?? "[]");
  #sending = false;
  #heard;

  /** `heard(post, {answer} | {error})` is called once for each post that is settled. */
  constructor(heard) {
    this.#heard = heard;
    addEventListener("online", () => this.flush());
    setInterval(() => this.flush(), RETRY_MS);
  }

  get length() {
    return this.#waiting.length;
  }

  add(post) {
    this.#waiting.push(post);
    this.#save();
    return this.flush();
  }

  /** Send what waits, oldest first; what the network swallows stays. */
  async flush() {
    if (this.#sending) return;
    this.#sending = true;
    try {
      while (this.#waiting.length) {
        const post = this.#waiting[0];
        const outcome = await send(post);
        if (!outcome) break;
        this.#waiting.shift();
        this.#save();
        this.#heard(post, outcome);
      }
    } finally {
      this.#sending = false;
    }
  }

  #save() {
    remember(QUEUE, JSON.stringify(this.#waiting));
  }
}

async function send(post) {
  try {
    const headers = { "Content-Type": "application/json" };
    const signal = AbortSignal.timeout(SEND_MS);
    const answer = await ask("api/results", { method: "POST", headers, body: JSON.stringify(post), signal });
    return { answer: await answer.json() };
  } catch (error) {
    return FINAL.includes(error.status) ? { error: error.message } : null;
  }
}

function recall(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null; // storage is switched off: this page alone remembers nothing
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // full or switched off: what waits is still in memory
  }
}
