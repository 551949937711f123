// Outputs beside those that are expected: the figures and the limits of run.py.

import { valuesOf } from "./npy.js";

const areSame = (one, other) => one.length === other.length && one.every((item, index) => item === other[index]);

export const short = (number) => String(Number(number.toPrecision(3)));

// Figures of an output: {shape} where it is another, {unequal}: fraction, or {maxAbs, sqnrDb}.
export function distance(expected, got) {
  if (expected.type !== got.type || !areSame(expected.dims, got.dims)) return { shape: `${got.type} (${got.dims.join(", ")})` };
  const wanted = valuesOf(expected);
  const found = valuesOf(got);
  if (!expected.type.startsWith("float")) {
    const unequal = wanted.filter((value, index) => value !== found[index]).length;
    return { unequal: wanted.length ? unequal / wanted.length : 0 };
  }
  let maxAbs = 0;
  let signal = 0;
  let noise = 0;
  for (const [index, y] of wanted.entries()) {
    const z = found[index];
    const areAlike = y === z || (Number.isNaN(y) && Number.isNaN(z));
    if (!areAlike && !(Number.isFinite(y) && Number.isFinite(z))) return { maxAbs: Infinity, sqnrDb: -Infinity };
    if (!Number.isFinite(y)) continue;
    maxAbs = Math.max(maxAbs, Math.abs(y - z));
    signal += y * y;
    noise += (y - z) ** 2;
  }
  return { maxAbs, sqnrDb: noise ? 10 * Math.log10(signal / noise) : Infinity };
}

// What an output's figures miss of its limits, in words; null where they keep all.
export function outside(limits, found) {
  if ("shape" in found) return `is a ${found.shape}`;
  if ("unequal" in found) {
    if (found.unequal <= limits.unequal) return null;
    return `differs in ${short(100 * found.unequal)} % of its elements (at most ${short(100 * limits.unequal)} %)`;
  }
  if (found.maxAbs > limits.atol) return `is off by ${short(found.maxAbs)} (at most ${short(limits.atol)})`;
  const least = limits.min_sqnr_db;
  // what errs less than the floor is zero for all purposes, whatever its SQNR
  if (least === null || found.maxAbs <= limits.floor || found.sqnrDb >= least) return null;
  return `has an SQNR of ${found.sqnrDb.toFixed(1)} dB (at least ${least.toFixed(1)} dB)`;
}

// Figures of an output in words.
export function inWords(found) {
  if ("shape" in found) return found.shape;
  if ("unequal" in found) return `${short(100 * found.unequal)} % differ`;
  return `off by ${short(found.maxAbs)}`;
}
