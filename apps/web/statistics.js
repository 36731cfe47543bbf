/** The q-th percentile (0 to 100) of ascending numbers, interpolated linearly as the host does it. */
export function percentile(sorted, q) {
  const position = ((sorted.length - 1) * q) / 100;
  const below = Math.floor(position);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - below);
}

/** Three significant digits, never in exponents. */
export function digits(value) {
  if (!(value > 0)) return "0";
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(value)));
  return value.toFixed(Math.min(decimals, 6));
}

/** Two digits and a power of ten, which no line breaks apart. */
export function scientific(value) {
  return value.toExponential(1).replace("-", "\u2011");
}

/** A generator of numbers in [0, 1): mulberry32. */
function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** A copy in an order that depends on the seed alone: Fisher and Yates. */
export function shuffled(items, seed) {
  const copy = [...items];
  const random = seeded(seed);
  for (let last = copy.length - 1; last > 0; last--) {
    const other = Math.floor(random() * (last + 1));
    [copy[last], copy[other]] = [copy[other], copy[last]];
  }
  return copy;
}
