// A classic worker, because LiteRT.js loads its WebAssembly with importScripts. It measures one model and ends.
"use strict";

const MAX_KEPT = 100_000;
const YIELD_MS = 100; // between inferences, how often it listens and tells; none of that is timed
const ARRAYS = { float32: Float32Array, uint8: Uint8Array, int8: Int8Array };

let stopped = null;

self.onmessage = ({ data }) => {
  if (data.stop) stopped = data.stop;
  else measure(data).catch((error) => postMessage({ failed: String(error?.message ?? error) }));
};

async function measure(job) {
  tell("Loading the engine");
  const { start } = await import(job.engine === "ort" ? "./ort.js" : "./litert.js");
  const engine = await start(job);
  tell("Opening the model");
  const begun = performance.now();
  const model = await engine.open(new Uint8Array(job.model));
  const load_ms = performance.now() - begun;

  const inputs = split(job);
  const time = () => timeOnce(model, inputs[0]);
  const first_inference_ms = await time();
  tell("Warming up");
  const { warmup_runs, warmup_seconds, min_runs, min_seconds } = job.protocol;
  const warm = await repeat(time, warmup_runs, warmup_seconds, () => {});
  tell("Measuring");
  const timed = await repeat(time, min_runs, min_seconds, (samples, fraction) => postMessage({ samples, fraction }));
  tell("Checking the answers");
  const probe_logits = [];
  for (const input of inputs) probe_logits.push(...rows(await model.run(input), job.input.shape[0]));
  postMessage({
    threads: engine.threads,
    measurement: {
      accelerator_used: model.accelerator,
      load_ms: round(load_ms),
      first_inference_ms,
      warmup_ms: warm.samples_ms,
      samples_ms: timed.samples_ms,
      sampled_at_s: timed.sampled_at_s,
      kept_every: timed.kept_every,
      timer_resolution_ms: clockStep(),
      probe_logits,
      partial: stopped,
    },
  });
}

async function timeOnce(model, input) {
  const begun = performance.now();
  await model.run(input);
  return round(performance.now() - begun);
}

/** Time until `runs` and `seconds` have both passed, or it is stopped; see Protocol about what is kept. */
async function repeat(time, runs, seconds, told) {
  let [samples_ms, sampled_at_s, kept_every, count, news] = [[], [], 1, 0, []];
  const begun = performance.now();
  let heard = begun;
  for (;;) {
    const sample = await time();
    const now = performance.now();
    if (count++ % kept_every === 0) {
      samples_ms.push(sample);
      sampled_at_s.push(round((now - begun) / 1000));
      news.push(sample);
    }
    if (samples_ms.length > MAX_KEPT) {
      [samples_ms, sampled_at_s] = [samples_ms, sampled_at_s].map((list) => list.filter((_, at) => at % 2 === 0));
      kept_every *= 2;
    }
    const elapsed = (now - begun) / 1000;
    const done = stopped || (count >= runs && elapsed >= seconds);
    if (done || now - heard > YIELD_MS) {
      told(news, Math.min(1, count / runs, seconds ? elapsed / seconds : 1));
      if (done) return { samples_ms, sampled_at_s, kept_every };
      news = [];
      await new Promise((resolve) => setTimeout(resolve));
      heard = performance.now();
    }
  }
}

/** The fixed inputs, one typed array for each inference. */
function split({ input, inputs }) {
  const size = input.shape.reduce((product, side) => product * side, 1);
  const Kind = ARRAYS[input.dtype];
  if (!Kind) throw new Error(`inputs of ${input.dtype} cannot be made in a browser`);
  const all = new Kind(inputs);
  return Array.from({ length: all.length / size }, (_, at) => all.slice(at * size, (at + 1) * size));
}

function rows(values, batch) {
  const width = values.length / batch;
  return Array.from({ length: batch }, (_, row) => Array.from(values.subarray(row * width, (row + 1) * width)));
}

/** The smallest step of the clock that was seen, ms. */
function clockStep() {
  let step = Infinity;
  const end = performance.now() + 20;
  for (let last = performance.now(), now = last; now < end; last = now) {
    now = performance.now();
    if (now > last) step = Math.min(step, now - last);
  }
  return Number.isFinite(step) ? round(step, 6) : null;
}

function round(value, decimals = 4) {
  return Number(value.toFixed(decimals));
}

function tell(phase) {
  postMessage({ phase });
}
