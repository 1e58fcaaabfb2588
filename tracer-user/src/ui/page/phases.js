// Phases of a request, and their bars. A phase is told by colour, by a pattern, by its letter where there is room, and by its name.

import { el, seconds } from "./dom.js";

/** Span name → class in app.css, name in words, letter. */
const PHASES = {
  front_end: ["front", "front end", "f"],
  parse_request: ["front", "parse", "f"],
  tokenize: ["tokenize", "tokenize", "t"],
  queue_wait: ["queue", "queue", "q"],
  prefill: ["prefill", "prefill", "p"],
  decode: ["decode", "decode", "d"],
  decode_step: ["decode", "decode step", "d"],
  decode_steps: ["decode", "decode steps", "d"],
  generation: ["generation", "generation", "g"],
  generations: ["generation", "generations", "g"],
  detokenize: ["detokenize", "detokenize", "z"],
};
const LEGEND = ["parse_request", "tokenize", "queue_wait", "prefill", "decode", "detokenize"];

export const phase = (name) => PHASES[name] ?? ["other", name.replaceAll("_", " "), "?"];
export const phaseClass = (name) => `p-${phase(name)[0]}`;

export function legend(element) {
  element.append(...LEGEND.map((name) => el("span", {}, el("i", { class: `key ${phaseClass(name)}` }), phase(name)[1])));
}

/** What a bar says in words. */
export function inWords(phases) {
  if (phases.length === 0) return "no phase was seen";
  return phases.map((of) => `${of.provenance === "inferred" ? "about " : ""}${phase(of.name)[1]} ${seconds(of.seconds)}`).join(", ");
}

/** Puts phases into `bar`, of which the whole width is `whole` seconds. Elements are kept where they are already there. */
export function fill(bar, phases, whole, total) {
  const share = (value) => `${Math.max(0, Math.min(100, (100 * value) / whole))}%`;
  const drawn = phases.slice(0, 40);
  while (bar.childElementCount > drawn.length + 1) bar.lastElementChild.remove();
  if (bar.childElementCount === 0) bar.append(el("span", { class: "extent" }));
  bar.firstElementChild.style.setProperty("width", share(total));
  bar.classList.toggle("over", total > whole * 1.0001);
  drawn.forEach((of, index) => {
    let part = bar.children[index + 1];
    if (!part) bar.append((part = el("span", {})));
    const [kind, , letter] = phase(of.name);
    part.className = `ph p-${kind}${of.provenance === "inferred" ? " inferred" : ""}`;
    part.style.setProperty("left", share(of.start_s));
    part.style.setProperty("width", share(of.seconds));
    // A letter needs a twelfth of a narrow bar.
    const text = of.seconds / whole > 0.08 ? letter : "";
    if (part.textContent !== text) part.textContent = text;
  });
  const words = inWords(phases);
  if (bar.title !== words) {
    bar.title = words;
    bar.setAttribute("aria-label", words);
  }
}

export const bar = () => el("div", { class: "bar", role: "img" });
