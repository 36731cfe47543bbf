import { digits, percentile } from "./statistics.js";

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, BASE, BINS] = [360, 150, 126, 30];

/** Draw the samples (ms) in `figure`, up to their 99th percentile, with the median and the 90th marked. */
export function drawHistogram(figure, samples) {
  const sorted = Float64Array.from(samples).sort();
  const low = sorted[0];
  const high = Math.max(percentile(sorted, 99), low * 1.001, low + 1e-6);
  const counts = new Array(BINS).fill(0);
  for (const value of sorted) {
    const bin = Math.floor(((value - low) / (high - low)) * BINS);
    if (bin <= BINS) counts[Math.min(bin, BINS - 1)]++;
  }
  const most = Math.max(...counts);
  const x = (value) => Math.min(WIDTH, ((value - low) / (high - low)) * WIDTH);
  const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.setAttribute("aria-label", `Histogram of ${sorted.length} times from ${digits(low)} to ${digits(high)} ms`);
  counts.forEach((count, bin) => {
    const height = (count / most) * (BASE - 14);
    const step = WIDTH / BINS;
    svg.append(element("rect", { x: bin * step, y: BASE - height, width: step - 1, height }));
  });
  svg.append(element("line", { class: "axis", x1: 0, x2: WIDTH, y1: BASE, y2: BASE }));
  for (const [name, q] of [["p50", 50], ["p90", 90]]) {
    const at = x(percentile(sorted, q));
    svg.append(element("line", { class: "mark", x1: at, x2: at, y1: 12, y2: BASE }));
    svg.append(text(name, at, 10, at > WIDTH - 30 ? "end" : at < 30 ? "start" : "middle"));
  }
  svg.append(text(`${digits(low)} ms`, 0, HEIGHT - 8, "start"), text(`${digits(high)} ms`, WIDTH, HEIGHT - 8, "end"));
  figure.replaceChildren(svg);
}

function element(name, attributes) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function text(content, x, y, anchor) {
  const made = element("text", { x, y, "text-anchor": anchor });
  made.textContent = content;
  return made;
}
