// What the keys do, as the page says it.

import { byId, el } from "./dom.js";

const KEYS = [
  ["↓ ↑ or j k", "next and previous request, or span"],
  ["Enter", "open the request; open or close a span"],
  ["→ ←", "open and close a span; next and previous engine step"],
  ["z", "zoom to the selected span, and back"],
  ["Esc", "back to the requests"],
  ["/", "filter"],
  ["s", "to the engine steps"],
  ["p", "pause and go on"],
  ["t", "theme"],
  ["?", "these keys"],
];

export function helpOnKeys() {
  byId("keys-list").append(...KEYS.flatMap(([keys, what]) => [el("dt", {}, el("kbd", {}, keys)), el("dd", {}, what)]));
}
