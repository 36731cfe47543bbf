import { shuffled } from "./statistics.js";

const ENGINES = { ort: "ONNX Runtime Web", litert: "LiteRT.js" };
const PROTOCOLS = { full: "Full", quick: "Quick", sustained: "Sustained" };
const ACCELERATORS = { wasm: "WASM (CPU)", webgpu: "WebGPU", webnn: "WebNN" };

/** What is measured with what, and for how long: the form, filled from what the computer offers. */
export class Choices {
  #session;
  #form = document.querySelector("#choices");

  constructor(session, accelerators, threads) {
    this.#session = session;
    const models = session.models.map((model) => row(model));
    document.querySelector("#models").replaceChildren(...models);
    fill("#accelerators", Object.entries(accelerators), ([name, why]) =>
      chip("checkbox", "accelerator", name, why ? `${ACCELERATORS[name]}: ${why}` : ACCELERATORS[name], {
        checked: name === "wasm",
        disabled: Boolean(why),
      }),
    );
    fill("#threads", threads, (count) => chip("checkbox", "threads", count, String(count), { checked: count === 1 }));
    fill("#protocols", Object.keys(session.protocols), (name, at) =>
      chip("radio", "protocol", name, PROTOCOLS[name] ?? name, { checked: at === 0 }),
    );
    document.querySelector("#limits").textContent = self.crossOriginIsolated
      ? ""
      : "One thread and a coarse clock: this page came over plain HTTP.";
    document.querySelector("#all").addEventListener("click", () => this.#tick(true));
    document.querySelector("#none").addEventListener("click", () => this.#tick(false));
    this.#form.addEventListener("change", () => this.#changed());
    this.#form.hidden = false;
    this.#changed();
  }

  get protocol() {
    return this.#session.protocols[this.#form.elements.protocol.value];
  }

  /** Everything that is ticked, in an order that the protocol's seed decides. */
  jobs() {
    const ticked = (name) => [...this.#form.querySelectorAll(`[name=${name}]:checked`)].map((box) => box.value);
    const threads = ticked("threads").map(Number);
    const jobs = [];
    for (const id of ticked("model")) {
      const model = this.#session.models.find((candidate) => candidate.id === id);
      for (const accelerator of ticked("accelerator")) {
        for (const count of accelerator === "wasm" ? threads : [1]) {
          const engines = new URL(this.#session.engines, location.href).pathname;
          jobs.push({ ...model, accelerator, threads: count, protocol: this.protocol, engines });
        }
      }
    }
    return shuffled(jobs, this.protocol.seed);
  }

  hide(hidden) {
    this.#form.hidden = hidden;
  }

  #tick(checked) {
    for (const box of this.#form.querySelectorAll("[name=model]")) box.checked = checked;
    this.#changed();
  }

  #changed() {
    const { min_runs, min_seconds, cool_down_seconds } = this.protocol;
    const length = min_seconds >= 1 ? `${min_runs > 1 ? `${min_runs} runs and ` : ""}${duration(min_seconds)}` : `${min_runs} runs`;
    const rest = cool_down_seconds ? `, ${duration(cool_down_seconds)} of rest before each` : "";
    document.querySelector("#protocol-note").textContent = `At least ${length} of each model after a warm-up${rest}.`;
    const count = this.jobs().length;
    const start = document.querySelector("#start");
    start.disabled = count === 0;
    start.textContent = count ? `Start ${count} ${count === 1 ? "measurement" : "measurements"}` : "Choose a model";
  }
}

/** What one job is, in words. */
export function titleOf(job) {
  return `${job.model}/${job.name}`;
}

/** What one job runs with, in words. */
export function settingOf({ engine, accelerator, threads }) {
  const count = accelerator === "wasm" ? `, ${threads} ${threads === 1 ? "thread" : "threads"}` : "";
  return `${ENGINES[engine]}, ${accelerator}${count}`;
}

function row(model) {
  const label = document.createElement("label");
  const name = document.createElement("span");
  const engine = document.createElement("small");
  engine.textContent = `${model.model}, ${ENGINES[model.engine]}`;
  name.append(model.name, engine);
  const size = document.createElement("span");
  size.className = "size";
  size.textContent = `${(model.bytes / 1e6).toFixed(1)} MB`;
  label.append(input("checkbox", "model", model.id, { checked: true }), name, size);
  return label;
}

function chip(type, name, value, words, properties) {
  const label = document.createElement("label");
  label.append(input(type, name, value, properties), words);
  return label;
}

function input(type, name, value, properties) {
  return Object.assign(document.createElement("input"), { type, name, value, ...properties });
}

function fill(selector, items, make) {
  document.querySelector(selector).replaceChildren(...items.map(make));
}

function duration(seconds) {
  return seconds >= 120 ? `${Math.round(seconds / 60)} minutes` : `${seconds} s`;
}
