// An ONNX model that copies one number: opening it starts the engine, so that the real one does not pay for it.
const IDENTITY = "CAg6NgoQCgF4EgF5IghJZGVudGl0eRIAWg8KAXgSCgoICAESBAoCCAFiDwoBeRIKCggIARIECgIIAUIECgAQDQ==";

/** Start ONNX Runtime Web. Returns `{threads, open(model)}`; see litert.js for what `open` gives. */
export async function start({ engines, accelerator, threads, input, output }) {
  const build = accelerator === "wasm" ? "ort.wasm.min.mjs" : "ort.webgpu.min.mjs";
  const ort = await import(`${engines}/ort/${build}`);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = `${engines}/ort/`;
  ort.env.wasm.numThreads = threads;
  const identity = Uint8Array.from(atob(IDENTITY), (letter) => letter.charCodeAt(0));
  await (await ort.InferenceSession.create(identity, { executionProviders: ["wasm"] })).release();
  const used = ort.env.wasm.numThreads;

  async function open(model) {
    const { session, placed } = await create(ort, model, accelerator);
    return {
      accelerator: placed,
      async run(values) {
        const tensor = new ort.Tensor(input.dtype, values, input.shape);
        const results = await session.run({ [input.name]: tensor });
        const logits = await results[output].getData();
        results[output].dispose();
        return logits;
      },
    };
  }
  return { threads: used, open };
}

/** A session that is on the accelerator whole, or else one that may leave operators to the CPU. */
async function create(ort, model, accelerator) {
  const options = { executionProviders: [accelerator], graphOptimizationLevel: "all" };
  if (accelerator === "wasm") return { session: await ort.InferenceSession.create(model, options), placed: "wasm" };
  try {
    const whole = { ...options, extra: { session: { disable_cpu_ep_fallback: "1" } } };
    return { session: await ort.InferenceSession.create(model, whole), placed: accelerator };
  } catch {
    return { session: await ort.InferenceSession.create(model, options), placed: `${accelerator} and wasm` };
  }
}
