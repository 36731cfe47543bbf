/** What the browser tells of the phone, as the host's schema has it. */
export async function describeDevice() {
  const hints = navigator.userAgentData;
  const wanted = ["model", "platformVersion", "architecture", "bitness", "fullVersionList"];
  const told = hints ? await hints.getHighEntropyValues(wanted).catch(() => ({})) : {};
  const agent = navigator.userAgent;
  const apple = agent.match(/\b(iPhone|iPad)\b/)?.[1];
  return {
    model: short(told.model || apple || androidModel(agent)),
    os: short(hints?.platform ? `${hints.platform} ${told.platformVersion ?? ""}`.trim() : systemOf(agent)),
    browser: short(browserOf(told.fullVersionList, agent)),
    architecture: short(told.architecture ? `${told.architecture} ${told.bitness ?? ""} bit` : null),
    cores: navigator.hardwareConcurrency || 1,
    memory_bytes: navigator.deviceMemory ? Math.round(navigator.deviceMemory * 2 ** 30) : null,
  };
}

/** Battery and charging where the browser tells; the rest of the conditions it does not. */
export async function readConditions() {
  const battery = await navigator.getBattery?.().catch(() => null);
  return {
    battery_percent: battery ? Math.round(battery.level * 100) : null,
    charging: battery ? battery.charging : null,
  };
}

/** Which accelerators can be asked for here: name -> why not, or null. */
export async function findAccelerators() {
  const insecure = self.isSecureContext ? null : "needs HTTPS";
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const context = await navigator.ml?.createContext().catch(() => null);
  return {
    wasm: null,
    webgpu: adapter ? null : (insecure ?? "not in this browser"),
    webnn: context ? null : (insecure ?? "not in this browser"),
  };
}

/** Thread counts to choose from, smallest first. */
export function threadChoices() {
  if (!self.crossOriginIsolated) return [1];
  const cores = navigator.hardwareConcurrency || 1;
  return [1, 2, 4, 8].filter((threads) => threads <= cores);
}

function browserOf(versions, agent) {
  const named = (versions ?? []).filter(({ brand }) => !/not.?a.?brand/i.test(brand));
  const best = named.find(({ brand }) => brand !== "Chromium") ?? named[0];
  if (best) return `${best.brand} ${best.version}`;
  for (const [name, pattern] of [
    ["Chrome", /CriOS\/([\d.]+)/],
    ["Firefox", /(?:Firefox|FxiOS)\/([\d.]+)/],
    ["Edge", /EdgiOS\/([\d.]+)/],
    ["Safari", /Version\/([\d.]+).*Safari/],
    ["Chrome", /Chrome\/([\d.]+)/],
  ]) {
    const found = agent.match(pattern);
    if (found) return `${name} ${found[1]}`;
  }
  return "unknown browser";
}

function systemOf(agent) {
  const apple = agent.match(/(?:iPhone )?OS (\d+(?:_\d+)*) like Mac/);
  if (apple) return `iOS ${apple[1].replaceAll("_", ".")}`;
  return agent.match(/Android [\d.]+/)?.[0] ?? navigator.platform ?? "unknown system";
}

function androidModel(agent) {
  return agent.match(/Android [\d.]+; ([^;)]+)/)?.[1];
}

function short(text) {
  return text ? String(text).slice(0, 200) : null;
}
