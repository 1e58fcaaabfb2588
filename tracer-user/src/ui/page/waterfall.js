// A request's spans as a tree over time. Rows are a treegrid: arrows move, open and close; what is selected is told to `chosen`.

import { between, el, seconds, shown } from "./dom.js";
import { phase, phaseClass } from "./phases.js";

/** A span with more children than this is closed at first, unless it is the root. */
const FEW = 24;
/** Children that are drawn in the bar of a closed span at most. */
const DRAWN = 400;
const PROVENANCE = "inferspan.provenance";

/** Spans by their parents, in the order of their starts; those whose parent is not there hang below the root. */
function tree(spans) {
  const byId = new Map(spans.map((span) => [span.span_id, { span, children: [], isOpen: true }]));
  const first = byId.get(spans[0].span_id);
  for (const node of byId.values()) if (node !== first) (byId.get(node.span.parent) ?? first).children.push(node);
  const zero = first.span.start_ns;
  for (const node of byId.values()) {
    node.from = between(zero, node.span.start_ns);
    node.to = between(zero, node.span.end_ns);
    node.children.sort((a, b) => byStart(a.span, b.span));
  }
  const down = (node, level) => {
    node.level = level;
    node.isOpen = level === 1 || node.children.length <= FEW;
    node.children.forEach((child) => { child.up = node; down(child, level + 1); });
  };
  down(first, 1);
  return first;
}
const byStart = (a, b) => {
  const [one, other] = [BigInt(a.start_ns), BigInt(b.start_ns)];
  return one < other ? -1 : one > other ? 1 : 0;
};

export const isInferred = (span) => span.attributes[PROVENANCE] === "inferred";

function label(span) {
  const of = span.attributes;
  const name = phase(span.name)[1];
  if (span.name === "decode_step") return `step ${shown(of["inferspan.step"], 20)}`;
  if (span.name === "decode_steps") return `steps ${shown(of["inferspan.steps.first"], 20)}–${shown(of["inferspan.steps.last"], 20)}`;
  if (span.name === "generation") return `generation ${shown(of["inferspan.index"] ?? 0, 20)}`;
  if (span.name === "queue_wait" && of["inferspan.reason"] === "preemption") return "queue, preempted";
  return span.name === "inference_request" ? "request" : name;
}

/** The waterfall of `spans`, below `above`; `chosen(node)` is told of the span that is selected, `zoomed(from, to)` of what is shown, s. */
export function waterfall(spans, above, chosen, zoomed) {
  const root = tree(spans);
  const state = { from: 0, to: Math.max(1e-9, root.to), current: root };
  const ruler = el("div", { class: "ruler", "aria-hidden": "true" });
  const grid = el("div", { class: "tree", role: "treegrid", "aria-label": "Spans over time" });
  const back = el("button", { type: "button", class: "plain", hidden: true, onclick: () => zoom(0, root.to) }, "Whole request");
  const all = el("button", { type: "button", class: "plain", onclick: () => openAll() }, "Open all");
  const element = el("section", { class: "waterfall", "aria-label": "Waterfall" },
    el("header", { class: "wf-head" }, el("div", { class: "wf-tools" }, el("h3", {}, `${spans.length.toLocaleString("en")} spans`), all, back), ruler), above, grid);

  const share = (time) => ((time - state.from) / (state.to - state.from)) * 100;
  const put = (piece, from, to) => {
    const [left, right] = [Math.max(-1, share(from)), Math.min(101, share(to))];
    piece.hidden = right < 0 || left > 100;
    piece.style.setProperty("left", `${left}%`);
    piece.style.setProperty("width", `${Math.max(0, right - left)}%`);
  };

  function row(node) {
    const { span } = node;
    const took = node.to - node.from;
    const [mark, piece] = [el("span", { class: "twist", "aria-hidden": "true" }), el("span", { class: `wf-bar ${phaseClass(span.name)}` })];
    if (isInferred(span)) piece.classList.add("inferred");
    const time = el("span", { class: "wf-time" }, `${isInferred(span) ? "~" : ""}${seconds(took)}`);
    const track = el("div", { class: "wf-track", role: "gridcell" }, piece, time);
    const failed = span.status !== null;
    const name = el("div", { class: "wf-name", role: "gridcell" }, mark, el("span", { class: "cut" }, label(span)), failed ? el("b", { class: "bad", title: shown(span.status, 80) }, "error") : null);
    name.style.setProperty("padding-left", `${(node.level - 1) * 12 + 4}px`);
    const made = el("div", { class: "wf-row", role: "row", "aria-level": String(node.level), tabindex: "-1" }, name, track);
    made.addEventListener("click", (event) => {
      select(node);
      if (event.target.closest(".twist")) twist(node, !node.isOpen);
    });
    made.addEventListener("dblclick", () => zoom(node.from, node.to));
    made.addEventListener("focus", () => select(node));
    Object.assign(node, { row: made, piece, mark, time, track, marks: marksOf(node, track), lanes: null });
    return made;
  }

  /** Events stand on the bar where they happened. */
  function marksOf(node, track) {
    return node.span.events.slice(0, 64).map((event) => {
      const at = between(root.span.start_ns, event.at_ns);
      const piece = el("i", { class: "wf-event", title: `${shown(event.name, 60)} at ${seconds(at)}` });
      track.append(piece);
      return { piece, at };
    });
  }

  function lay(node) {
    put(node.piece, node.from, node.to);
    const [end, begin] = [share(node.to), share(node.from)];
    // Beside the bar where there is room, else before it, else on it.
    node.time.className = `wf-time ${end < 86 ? "after" : begin > 14 ? "before" : "on"}`;
    node.time.style.setProperty("left", end < 86 ? `${Math.max(0, end)}%` : begin > 14 ? `${Math.min(100, begin)}%` : "auto");
    for (const { piece, at } of node.marks) {
      const left = share(at);
      piece.hidden = left < 0 || left > 100;
      piece.style.setProperty("left", `${left}%`);
    }
    const isClosed = node.children.length > 0 && !node.isOpen;
    if (!isClosed) {
      node.lanes?.remove();
      node.lanes = null;
      return;
    }
    if (!node.lanes) node.track.append((node.lanes = el("span", { class: "lanes" }, node.children.slice(0, DRAWN).map(() => el("i")))));
    [...node.lanes.children].forEach((piece, at) => put(piece, node.children[at].from, node.children[at].to));
  }

  function* nodes(node = root) {
    yield node;
    if (node.isOpen) for (const child of node.children) yield* nodes(child);
  }

  function draw() {
    const wanted = [...nodes()];
    const rows = wanted.map((node) => node.row ?? row(node));
    grid.replaceChildren(...rows);
    for (const node of wanted) {
      lay(node);
      if (node.children.length > 0) {
        node.row.setAttribute("aria-expanded", String(node.isOpen));
        node.mark.textContent = node.isOpen ? "▾" : "▸";
      }
    }
    ticks();
    zoomed(state.from, state.to);
    back.hidden = state.from === 0 && state.to === root.to;
    const folded = wanted.some((node) => node.children.length > 0 && !node.isOpen);
    all.textContent = folded ? "Open all" : "Close steps";
    all.hidden = spans.length < 2;
    mark();
  }

  function ticks() {
    const span = state.to - state.from;
    const rough = span / 5;
    const unit = 10 ** Math.floor(Math.log10(rough));
    const every = [1, 2, 5, 10].map((of) => of * unit).find((of) => of >= rough);
    const at = [];
    for (let n = Math.ceil(state.from / every - 1e-9); n * every <= state.to; n++) at.push(n * every);
    ruler.replaceChildren(...at.map((time) => {
      const tick = el("span", { class: share(time) > 90 ? "tick last" : "tick" }, seconds(time));
      tick.style.setProperty("left", `${share(time)}%`);
      return tick;
    }));
  }

  function mark() {
    for (const made of grid.children) {
      const isCurrent = made === state.current.row;
      made.tabIndex = isCurrent ? 0 : -1;
      made.setAttribute("aria-selected", String(isCurrent));
    }
  }

  function select(node) {
    if (state.current === node && node.row?.tabIndex === 0 && state.told === node) return;
    Object.assign(state, { current: node, told: node });
    mark();
    chosen(node);
  }

  function twist(node, isOpen) {
    node.isOpen = isOpen;
    draw();
    node.row.focus();
  }

  function openAll() {
    const isClosing = all.textContent !== "Open all";
    const each = (node) => {
      if (node.children.length > 0) node.isOpen = isClosing ? node.level === 1 || node.children.length <= FEW && node.span.name !== "decode" : true;
      node.children.forEach(each);
    };
    each(root);
    if (!state.current.row?.isConnected) state.current = root;
    draw();
  }

  function zoom(from, to) {
    const edge = from === 0 && to === root.to ? 0 : (to - from) * 0.05;
    Object.assign(state, { from: from - edge, to: Math.max(to + edge, from + 1e-7) });
    draw();
  }

  grid.addEventListener("keydown", (event) => {
    const list = [...nodes()];
    const at = list.indexOf(state.current);
    const go = (to) => { const node = list[Math.max(0, Math.min(list.length - 1, to))]; node.row.focus(); node.row.scrollIntoView({ block: "nearest" }); };
    const { current } = state;
    const hasChildren = current.children.length > 0;
    const acts = {
      ArrowDown: () => go(at + 1), j: () => go(at + 1), ArrowUp: () => go(at - 1), k: () => go(at - 1), Home: () => go(0), End: () => go(list.length - 1),
      PageDown: () => go(at + 15), PageUp: () => go(at - 15),
      ArrowRight: () => (hasChildren && !current.isOpen ? twist(current, true) : go(at + 1)),
      ArrowLeft: () => (hasChildren && current.isOpen ? twist(current, false) : current.up && go(list.indexOf(current.up))),
      Enter: () => hasChildren && twist(current, !current.isOpen), z: () => (back.hidden ? zoom(current.from, current.to) : zoom(0, root.to)),
    };
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
  });

  draw();
  chosen(root);
  state.told = root;
  return element;
}
