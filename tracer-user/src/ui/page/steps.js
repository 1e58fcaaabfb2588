// Engine steps as a strip over time: what each computed, how many ran and waited, how full the KV cache was, and what CUDA did.
//
// A step is as wide as it took. Its height is the batch's tokens on a scale of logarithms, since a prompt has a thousand times the tokens
// of a decode. Below stand two lanes: requests that wait, up to the most of them, and the KV cache, up to all of it. One step is selected,
// with the pointer or with the arrow keys; its values are said beside the title.

import { between, byId, colour, count, el, percent, seconds, setText } from "./dom.js";

/** How far back the live strip goes, seconds. */
export const WINDOW = 12;
/** Steps that are kept and drawn at most. */
const MOST = 4000;
/** Room for the axis, pixels, and of the lanes below the batch, as shares of the rest. */
const AXIS = 15;
const LANE = 0.2;
const GAP = 3;

const live = { steps: [], origin: null };
const view = { steps: [], from: 0, to: WINDOW, mark: null, idle: null, selected: null };
let canvas = null;

export const idOf = (step) => `${step.trace_id}/${step.span_id}`;
export const newest = () => live.steps.at(-1)?.end_ns ?? null;

function withTimes(step) {
  live.origin ??= step.start_ns;
  return { ...step, from: between(live.origin, step.start_ns), to: between(live.origin, step.end_ns), key: idOf(step) };
}

/** Steps that came since. */
export function add(steps) {
  const known = new Set(live.steps.slice(-64).map((step) => step.key));
  for (const step of steps) if (!known.has(idOf(step))) live.steps.push(withTimes(step));
  live.steps.splice(0, Math.max(0, live.steps.length - MOST));
}

/** Of another engine. */
export function clear() {
  Object.assign(live, { steps: [], origin: null });
  Object.assign(view, { selected: null, mark: null });
}

/** The strip as it goes on, up to now, unix ns; of an engine that idles, up to its last step. */
export function showLive(now) {
  live.origin ??= now;
  const [last, at] = [live.steps.at(-1)?.to ?? null, between(live.origin, now)];
  const idle = last === null ? 0 : at - last;
  const end = idle > WINDOW ? last : Math.max(last ?? 0, at);
  // What began a moment ago has the whole width.
  const from = Math.max(end - WINDOW, Math.min(live.steps[0]?.from ?? 0, end - 1));
  Object.assign(view, { steps: live.steps, from, to: end, mark: null, idle: idle > WINDOW ? idle : null });
  draw();
}

/** The strip of a request: its steps, and when it began, unix ns. */
export function showOf(steps, start) {
  live.origin ??= start;
  Object.assign(view, { steps: steps.map(withTimes), mark: between(live.origin, start), selected: null });
  draw();
}

/** What of the request is shown: from and to, s from its start. */
export function zoom(from, to) {
  if (view.mark === null) return;
  Object.assign(view, { from: view.mark + from, to: view.mark + to });
  draw();
}

/** Between the live view and a request. */
export function leave() {
  Object.assign(view, { steps: [], mark: null });
  select(null);
}

const tall = (tokens, most) => Math.log1p(tokens) / Math.log1p(Math.max(1, most));
const wide = () => canvas.clientWidth;
const x = (time) => ((time - view.from) / (view.to - view.from)) * wide();
const visible = () => view.steps.filter((step) => step.to >= view.from && step.from <= view.to);

function axis(paint, height) {
  const span = view.to - view.from;
  const every = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600].find((step) => span / step <= Math.max(3, wide() / 110)) ?? 1800;
  // A request's times count from its start, the live strip's back from now.
  const zero = view.mark ?? view.to;
  paint.font = "10px system-ui, sans-serif";
  paint.textAlign = "center";
  for (let at = Math.ceil((view.from - zero) / every) * every; at + zero <= view.to + 1e-9; at += every) {
    const left = x(at + zero);
    paint.fillStyle = colour("--grid");
    paint.fillRect(Math.round(left), 0, 1, height - AXIS);
    paint.fillStyle = colour("--dim");
    const text = Math.abs(at) < every / 2 ? (view.mark === null ? "now" : "start") : `${at < 0 ? "−" : "+"}${seconds(Math.abs(at))}`;
    if (left > 14 && left < wide() - 14) paint.fillText(text, left, height - 4);
  }
  if (view.idle !== null) {
    paint.textAlign = "right";
    paint.fillText(`last step, ${seconds(view.idle)} ago`, wide() - 4, height - 4);
  }
}

/** A lane: values from 0 to 1, filled from `bottom` up to `room`. */
function lane(paint, steps, value, stroke, fill, bottom, room) {
  paint.fillStyle = colour("--grid");
  paint.fillRect(0, bottom, wide(), 1);
  paint.beginPath();
  for (const step of steps) {
    const at = value(step) ?? null;
    if (at === null) continue;
    const [left, right, up] = [x(step.from), x(step.to), Math.min(1, at) * room];
    paint.rect(left, bottom - up, Math.max(1, right - left + 0.5), up);
  }
  paint.fillStyle = colour(fill);
  paint.fill();
  paint.fillStyle = colour(stroke);
  for (const step of steps) {
    const at = value(step) ?? null;
    if (at !== null && at > 0) paint.fillRect(x(step.from), bottom - Math.min(1, at) * room, Math.max(1, x(step.to) - x(step.from) + 0.5), 1.5);
  }
}

/** What each step computed: prompts on top of tokens, and how long CUDA was waited for. */
function batches(paint, steps, bottom, room) {
  const most = steps.reduce((high, step) => Math.max(high, (step.prefill_tokens ?? 0) + (step.decode_tokens ?? 0)), 1);
  const [prefill, decode, cuda] = [colour("--prefill"), colour("--decode"), colour("--cuda")];
  for (const step of steps) {
    const [left, right] = [x(step.from), x(step.to)];
    const across = Math.max(1, right - left - (right - left > 3 ? 1 : 0));
    const both = tall((step.prefill_tokens ?? 0) + (step.decode_tokens ?? 0), most) * room;
    const lower = tall(step.decode_tokens ?? 0, most) * room;
    paint.fillStyle = prefill;
    paint.fillRect(left, bottom - both, across, Math.max(0, both - lower));
    paint.fillStyle = decode;
    paint.fillRect(left, bottom - lower, across, lower);
    if (step.cuda?.wait_s) {
      paint.fillStyle = cuda;
      paint.fillRect(left, bottom - 3, across * Math.min(1, step.cuda.wait_s / Math.max(1e-9, step.to - step.from)), 3);
    }
  }
}

export function draw() {
  if (!canvas || wide() === 0) return;
  const [width, height, scale] = [wide(), canvas.clientHeight, devicePixelRatio || 1];
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const paint = canvas.getContext("2d");
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  paint.clearRect(0, 0, width, height);
  // Beside a waterfall its ruler says the times.
  if (view.mark === null) axis(paint, height);
  const bottom = view.mark === null ? height - AXIS : height - 1;
  const room = Math.floor(bottom * LANE);
  const steps = visible();
  const queue = steps.reduce((high, step) => Math.max(high, step.waiting ?? 0), 1);
  batches(paint, steps, bottom - 2 * (room + GAP), bottom - 2 * (room + GAP) - 2);
  lane(paint, steps, (step) => (step.waiting === null ? null : step.waiting / queue), "--waiting", "--waiting-fill", bottom - room - GAP, room);
  lane(paint, steps, (step) => step.kv_cache_usage, "--kv", "--kv-fill", bottom, room);
  const chosen = view.selected;
  if (chosen && chosen.to >= view.from && chosen.from <= view.to) {
    paint.strokeStyle = colour("--ink");
    paint.lineWidth = 2;
    paint.strokeRect(x(chosen.from), 1, Math.max(3, x(chosen.to) - x(chosen.from)), bottom - 2);
  }
}

/** A step in words. */
export function words(step) {
  const parts = [
    seconds(step.to - step.from), `${count(step.requests)} requests`, `${count(step.prefill_tokens)} prefill tokens`, `${count(step.decode_tokens)} decode tokens`,
    `${count(step.running)} running`, `${count(step.waiting)} waiting`, `KV cache ${percent(step.kv_cache_usage)}`,
  ];
  if (step.cuda) {
    const { launches, graph_launches: graphs, gap_s: gap, wait_s: wait, mode } = step.cuda;
    parts.push(`CUDA ${mode ?? ""} ${count(launches)} launches, ${count(graphs)} graphs, gap ${seconds(gap)}, wait ${seconds(wait)}`);
  }
  return parts.join(" · ");
}

function select(step) {
  view.selected = step;
  const values = step ? words(step) : "Select a step: click, or arrow keys";
  setText(byId("steps-values"), values);
  canvas.setAttribute("aria-valuetext", step ? values : "none selected");
  const steps = visible();
  canvas.setAttribute("aria-valuemax", String(Math.max(0, steps.length - 1)));
  canvas.setAttribute("aria-valuenow", String(Math.max(0, step ? steps.findIndex((of) => of.key === step.key) : 0)));
  draw();
}

/** Selects the step that a link names; whether it is there. */
export function jump(trace, span) {
  const step = view.steps.find((of) => of.key === `${trace}/${span}`);
  if (!step) return false;
  select(step);
  byId("steps").scrollIntoView({ block: "nearest" });
  return true;
}

function at(event) {
  const time = view.from + (event.offsetX / wide()) * (view.to - view.from);
  const steps = visible();
  const off = (step) => (time < step.from ? step.from - time : time > step.to ? time - step.to : 0);
  return steps.reduce((best, step) => (best === null || off(step) < off(best) ? step : best), null);
}

function onKey(event) {
  const steps = visible();
  const now = view.selected ? steps.findIndex((step) => step.key === view.selected.key) : -1;
  const to = { ArrowLeft: now < 0 ? steps.length - 1 : now - 1, ArrowRight: now < 0 ? 0 : now + 1, Home: 0, End: steps.length - 1 }[event.key];
  if (to === undefined || steps.length === 0) return;
  event.preventDefault();
  select(steps[Math.max(0, Math.min(steps.length - 1, to))]);
}

export function start() {
  canvas = byId("steps-strip");
  const key = (name, text) => el("span", {}, el("i", { class: name }), text);
  byId("steps-legend").append(key("key p-prefill", "prefill tokens"), key("key p-decode", "decode tokens"), key("key cuda", "CUDA wait"), key("key waiting", "waiting"), key("key kv", "KV use"));
  canvas.addEventListener("click", (event) => select(at(event)));
  canvas.addEventListener("keydown", onKey);
  select(null);
}
