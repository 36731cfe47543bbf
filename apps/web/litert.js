/**
 * Start LiteRT.js. Returns `{threads, open(model)}`; `open` takes the file's bytes and gives
 * `{accelerator, run(values)}`: where the model really is, and a function from one input to its logits.
 */
export async function start({ engines, accelerator, threads, input, output, scheme }) {
  const folder = `${engines}/litert/`;
  const litert = await import(`${folder}litert.mjs`);
  // Its threaded build needs relaxed SIMD, which not every phone's browser has.
  const threaded = accelerator === "wasm" && threads > 1 && (await litert.supportsFeature("relaxedSimd"));
  const suspending = accelerator !== "wasm" && "Suspending" in WebAssembly;
  const build = threaded ? "_threaded" : suspending ? "_jspi" : "";
  // Read by the engine's loader: where its WebAssembly is, and what its threads run.
  self.Module = {
    locateFile: (name) => folder + name,
    mainScriptUrlOrBlob: `${folder}litert_wasm${build}_internal.js`,
  };
  const runtime = await litert.loadLiteRt(folder, { threads: threaded, jspi: suspending });
  if (accelerator === "webgpu" && !runtime.getDefaultEnvironment().webGpuDevice) throw new Error("no WebGPU device");

  async function open(model) {
    const options = { accelerator, cpuOptions: { numThreads: threads } };
    if (scheme === "fp32") options.gpuOptions = { precision: "fp32" };
    const compiled = await runtime.loadAndCompile(model, options);
    return {
      accelerator: placement(compiled, accelerator),
      async run(values) {
        const tensor = new litert.Tensor(values, input.shape);
        const results = await compiled.run({ [input.name]: tensor });
        const logits = await results[output].data();
        tensor.delete();
        for (const result of Object.values(results)) result.delete();
        return logits;
      },
    };
  }
  return { threads: threaded ? threads : 1, open };
}

function placement(compiled, accelerator) {
  if (accelerator === "wasm" || compiled.options.accelerator === "wasm") return "wasm";
  return compiled.isFullyAccelerated ? accelerator : `${accelerator} and wasm`;
}
