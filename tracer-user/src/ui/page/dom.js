// Elements, and text that others chose. Every string goes in as text; nothing here, or elsewhere, parses HTML.

/** An element: properties, then children (nodes, strings, null). `class`, `data` and ARIA go by their attributes. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") for (const [of, is] of Object.entries(value)) element.style.setProperty(of, is);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Replaces text only where it changed: a screen reader reads what changes. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Control characters, invisible ones, and those that turn the direction of what follows.
const UNSEEN = /[\p{Cc}\p{Cs}\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/** A string of the target as it may be shown: what cannot be seen is written out; at most `most` characters. */
export function shown(text, most = 200) {
  if (text === null || text === undefined || text === "") return "–";
  const whole = String(text);
  const cut = whole.length > most ? `${whole.slice(0, most)}… (${count(whole.length)} characters)` : whole;
  return cut.replace(UNSEEN, (char) => `\\u{${char.codePointAt(0).toString(16)}}`);
}

/** What a screen reader is told: the newest sentence. */
export const say = (text) => setText(byId("said"), text);

let probe = null;
/** The value of a colour of app.css as it is now, for a canvas. */
export function colour(name) {
  if (!probe) document.body.append((probe = el("span", { hidden: true })));
  probe.style.setProperty("color", `var(${name})`);
  return getComputedStyle(probe).color;
}

const missing = (value) => value === null || value === undefined || Number.isNaN(value);
const digits = (value, places) => value.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
export const count = (value) => (missing(value) ? "–" : Math.round(value).toLocaleString("en"));

/** Seconds, with three digits that count: `840 µs`, `12.3 ms`, `1.25 s`, `2 m 05 s`. */
export function seconds(value) {
  if (missing(value)) return "–";
  const size = Math.abs(value);
  const of = (number) => digits(number, Math.abs(number) >= 99.95 ? 0 : Math.abs(number) >= 9.995 ? 1 : 2);
  if (size === 0) return "0 s";
  if (size < 0.0009995) return `${digits(value * 1e6, 0)} µs`;
  if (size < 0.9995) return `${of(value * 1e3)} ms`;
  if (size < 120) return `${of(value)} s`;
  return `${Math.floor(value / 60)} m ${String(Math.floor(value % 60)).padStart(2, "0")} s`;
}

export const percent = (share) => (missing(share) ? "–" : `${digits(share * 100, share > 0 && share < 0.0995 ? 1 : 0)} %`);
export const rate = (value) => (missing(value) ? "–" : digits(value, value < 9.95 ? 1 : 0));

export function bytes(value) {
  if (missing(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  for (; value >= 1024 && at < units.length - 1; at++) value /= 1024;
  return `${digits(value, at > 0 && value < 10 ? 1 : 0)} ${units[at]}`;
}

/** Unix ns are strings: they do not fit a double. Seconds from one to the other. */
export const between = (from, to) => Number(BigInt(to) - BigInt(from)) / 1e9;
export const dateOf = (ns) => new Date(Number(BigInt(ns) / 1000000n));
/** `14:03:07.123`, local time. */
export const clock = (date) =>
  `${date.toLocaleTimeString("en", { hour12: false })}.${String(date.getMilliseconds()).padStart(3, "0")}`;

export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
