"use strict";
// Numbers as people read them; what is unknown is a question mark.

const UNKNOWN = "?";

const isKnown = (value) => value !== null && value !== undefined;

/** Bytes in decimal units: `269.77 kB`. */
function bytesText(value) {
  if (!isKnown(value)) return UNKNOWN;
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (value >= scale) return `${(value / scale).toFixed(2)} ${unit}`;
  }
  return `${value} B`;
}

const countText = (value) => (isKnown(value) ? value.toLocaleString("en") : UNKNOWN);

/** Large counts in short: `40.6 M`. */
function shortText(value) {
  if (!isKnown(value)) return UNKNOWN;
  for (const [unit, scale] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (value >= scale) return `${(value / scale).toPrecision(3)} ${unit}`;
  }
  return String(value);
}

/** Three significant digits. */
function digits(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1000 || size < 1e-4) return value.toExponential(2);
  return String(Number(value.toPrecision(3)));
}

const millisecondsText = (value) => (isKnown(value) ? `${digits(value)} ms` : UNKNOWN);

const decibelText = (value) => (isKnown(value) ? `${value.toFixed(1)} dB` : UNKNOWN);

const percentText = (value) => (isKnown(value) ? `${(100 * value).toFixed(1)} %` : UNKNOWN);

const secondsText = (value) => (isKnown(value) ? `${value.toFixed(2)} s` : UNKNOWN);

/** Change of a size: `−76 %`; nothing where it is not known. */
function changeText(before, after) {
  if (!before || !isKnown(after)) return "";
  const change = Math.round(100 * (after / before - 1));
  if (change === 0) return after === before ? "unchanged" : "about the same";
  return `${change < 0 ? "−" : "+"}${Math.abs(change)} %`;
}

const shapeText = (shape) => (shape ? shape.map((dim) => dim ?? "?").join(" × ") : UNKNOWN);

/** A text no longer than `most` characters, cut in the middle: ends of names tell most. */
function shortened(text, most) {
  if (text.length <= most) return text;
  const tail = Math.ceil((most - 1) * 0.65);
  return `${text.slice(0, most - 1 - tail)}…${text.slice(text.length - tail)}`;
}

const fileName = (path) => (path ? path.split(/[\\/]/).pop() : "");
