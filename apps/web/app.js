import { Choices, settingOf, titleOf } from "./choices.js";
import { describeDevice, findAccelerators, threadChoices } from "./device.js";
import { drawHistogram } from "./histogram.js";
import { ask, Outbox } from "./host.js";
import { Meter } from "./measure.js";
import { digits, percentile, scientific } from "./statistics.js";

const MAX_DRAWN = 20_000; // samples in the live figures; the host gets them all
const DRAW_MS = 400;

const $ = (selector) => document.querySelector(selector);
const meter = new Meter();
const cards = new Map();
let device = null;

const outbox = new Outbox((post, { answer, error }) => {
  show(post, error ? { text: `Not kept: ${error}`, tone: "bad" } : verdict(answer));
  showQueue();
});

async function main() {
  device = await describeDevice();
  const cores = `${device.cores} ${device.cores === 1 ? "core" : "cores"}`;
  $("#device").textContent = [device.model, device.os, device.browser, cores].filter(Boolean).join(" · ");
  const session = await (await ask("api/session")).json();
  for (const { name, version, licence, owner } of session.packages) {
    const item = document.createElement("li");
    item.textContent = `${name} ${version}, ${licence}, © ${owner}`;
    $("#licences").append(item);
  }
  const choices = new Choices(session, await findAccelerators(), threadChoices());
  $("#choices").addEventListener("submit", (event) => {
    event.preventDefault();
    run(choices).catch(complain);
  });
  $("#stop").addEventListener("click", () => meter.stop("stopped on the phone"));
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) meter.stop("the page was in the background");
  });
  showQueue();
  outbox.flush();
}

/** Measure everything that is ticked; a job that fails does not stop the others. */
async function run(choices) {
  $("#problem").hidden = true;
  choices.hide(true);
  $("#live").hidden = false;
  await meter.begin();
  try {
    const jobs = choices.jobs();
    for (const [at, job] of jobs.entries()) {
      if (meter.stopped) break;
      $("#live-title").textContent = `Measuring ${at + 1} of ${jobs.length}`;
      await runOne(job);
    }
    if (meter.stopped) throw new Error(`Ended early: ${meter.stopped}.`);
  } finally {
    await meter.end();
    $("#live").hidden = true;
    choices.hide(false);
  }
}

async function runOne(job) {
  const live = new Live(job);
  const outcome = await meter.measure(job, (news) => live.hear(news)).catch((error) => ({ failed: error.message }));
  if (outcome.failed && meter.stopped) return;
  const post = {
    schema_version: 1,
    id: Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join(""),
    artifact: job.id,
    model_sha256: job.sha256,
    engine: job.engine,
    accelerator: job.accelerator,
    threads: outcome.threads ?? job.threads,
    protocol: job.protocol,
    device,
    measurement: outcome.measurement ?? null,
    not_run: outcome.failed ? outcome.failed.slice(0, 2000) : null,
  };
  addCard(post, job);
  await outbox.add(post);
  showQueue();
}

/** The figures of the measurement in progress. */
class Live {
  #samples = [];
  #drawn = 0;

  constructor(job) {
    $("#live-job").textContent = `${titleOf(job)} on ${settingOf(job)}`;
    $("#live-progress").value = 0;
    $("#live-p50").textContent = $("#live-p90").textContent = "–";
    $("#live-runs").textContent = "0";
    $("#live-histogram").replaceChildren();
  }

  hear({ phase, samples, fraction }) {
    if (phase) $("#live-phase").textContent = `${phase} …`;
    if (!samples) return;
    this.#samples.push(...samples);
    if (this.#samples.length > MAX_DRAWN) this.#samples = this.#samples.slice(-MAX_DRAWN);
    $("#live-progress").value = fraction;
    if (performance.now() - this.#drawn < DRAW_MS && fraction < 1) return;
    this.#drawn = performance.now();
    const sorted = Float64Array.from(this.#samples).sort();
    $("#live-p50").textContent = digits(percentile(sorted, 50));
    $("#live-p90").textContent = digits(percentile(sorted, 90));
    $("#live-runs").textContent = String(this.#samples.length);
    drawHistogram($("#live-histogram"), this.#samples);
  }
}

function addCard(post, job) {
  const card = document.createElement("li");
  const title = document.createElement("h3");
  title.textContent = titleOf(job);
  const setting = document.createElement("p");
  setting.className = "note";
  setting.textContent = settingOf({ ...job, threads: post.threads });
  card.append(title, setting);
  const measured = post.measurement;
  if (measured) {
    if (measured.accelerator_used !== post.accelerator) setting.textContent += `; really on ${measured.accelerator_used}`;
    card.append(figures(measured));
    if (measured.partial) card.append(paragraph(`Ended early: ${measured.partial}`, "unsure"));
  } else {
    card.append(paragraph(`Not run: ${post.not_run}`, "bad"));
  }
  const state = paragraph("Kept on this phone until the computer has it", "unsure");
  card.append(state);
  cards.set(post.id, state);
  $("#cards").prepend(card);
  $("#results").hidden = false;
}

function figures({ samples_ms, first_inference_ms, load_ms }) {
  const sorted = Float64Array.from(samples_ms).sort();
  const list = document.createElement("dl");
  list.className = "figures";
  const shown = { p50: percentile(sorted, 50), p90: percentile(sorted, 90), first: first_inference_ms, load: load_ms };
  for (const [name, value] of Object.entries(shown)) {
    const cell = document.createElement("div");
    const [term, figure] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, figure.textContent] = [`${name}, ms`, digits(value)];
    cell.append(term, figure);
    list.append(cell);
  }
  return list;
}

function verdict({ correctness }) {
  if (!correctness) return { text: "Kept on the computer", tone: "" };
  const { max_abs_error, tolerance, passed } = correctness;
  const error = max_abs_error === null ? "not comparable" : `max |Δlogit| ${scientific(max_abs_error)}`;
  const allowed = `${error}, allowed ${scientific(tolerance)}`;
  return passed
    ? { text: `Right: ${allowed}`, tone: "good" }
    : { text: `Wrong answers: ${allowed}. This time is worth nothing.`, tone: "bad" };
}

function show(post, { text, tone }) {
  const state = cards.get(post.id);
  if (state) [state.textContent, state.className] = [text, tone];
}

function showQueue() {
  const waiting = outbox.length;
  $("#queue").textContent = waiting ? `${waiting} not on the computer yet; sent again every few seconds.` : "";
  if (waiting) $("#results").hidden = false;
}

function paragraph(text, tone) {
  const made = document.createElement("p");
  [made.textContent, made.className] = [text, tone];
  return made;
}

function complain(error) {
  $("#problem").textContent = error.status || !(error instanceof TypeError)
    ? error.message
    : "The computer does not answer. Is mf-bench serve still running, and is this phone in the same network?";
  $("#problem").hidden = false;
}

main().catch(complain);
