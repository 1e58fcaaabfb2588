// The page: asks the tracer once a second, and shows the live view or the request that the address names.
//
// `#/?outcome=abort&slower=2` is the live view with a filter, `#/request/TRACE/SPAN` one request: both can be shared.

import * as api from "./api.js";
import { byId, bytes, count, el, percent, plural, rate, say, seconds, setText, shown } from "./dom.js";
import { helpOnKeys } from "./keys.js";
import * as load from "./load.js";
import * as request from "./request.js";
import * as requests from "./requests.js";
import * as steps from "./steps.js";

/** Between two askings, ms. */
const EVERY = 1000;
/** While the tracer does not answer, ms. */
const RETRY = 3000;
/** Steps that are asked for at once. */
const STEPS = 3000;
/** A screen reader is told the counts this often, ms. */
const SAY_EVERY = 30_000;

const state = { isPaused: false, overview: null, before: null, engine: null, place: null, from: null, turn: 0, timer: null, saidAt: 0 };

function placeOf(hash) {
  const found = /^#\/request\/([0-9a-f]{1,32})\/([0-9a-f]{1,16})$/.exec(hash);
  return found ? { trace: found[1], span: found[2] } : null;
}

/** What the tracer costs, since the last answer. */
function tracerSays(now, before) {
  const { tracer, lost, store } = now;
  const apart = before ? Number(BigInt(now.now_ns) - BigInt(before.now_ns)) / 1e9 : 0;
  const share = apart > 0.2 ? (tracer.cpu_seconds - before.tracer.cpu_seconds) / apart : null;
  const events = apart > 0.2 ? (tracer.events - before.tracer.events) / apart : null;
  const gone = Object.entries(lost).filter(([, number]) => number > 0);
  const parts = [
    ["tracer", tracer.cpu_seconds === null ? "–" : `${share === null ? seconds(tracer.cpu_seconds) : percent(Math.max(0, share))} CPU, ${bytes(tracer.memory_bytes)}`],
    ["events", `${count(tracer.events)}${events === null ? "" : ` (${rate(Math.max(0, events))}/s)`}`],
    ["lost", gone.length === 0 ? "nothing" : gone.map(([stage, number]) => `${shown(stage, 40)} ${count(number)}`).join(", "), gone.length > 0],
    ["kept", `${plural(store.requests, "request")}, ${plural(store.steps, "step")}, ${bytes(store.bytes)} of ${bytes(store.limit_bytes)}`],
  ];
  if (store.dropped_requests + store.dropped_steps > 0) parts.push(["made room for newer", `${plural(store.dropped_requests, "request")}, ${plural(store.dropped_steps, "step")}`]);
  if (store.missed > 0) parts.push(["not kept, the page's queue was full", count(store.missed), true]);
  return parts;
}

function showStatus(now) {
  const shownBefore = byId("status");
  const parts = tracerSays(now, state.before);
  while (shownBefore.childElementCount > parts.length) shownBefore.lastElementChild.remove();
  parts.forEach(([name, text, isBad], at) => {
    let part = shownBefore.children[at];
    if (!part) shownBefore.append((part = el("span", {}, el("b"), " ", el("span"))));
    setText(part.firstChild, name);
    setText(part.lastChild, text);
    part.classList.toggle("bad", Boolean(isBad));
  });
}

function enginesOf(now) {
  return now.servers.flatMap((server) => server.engines.map((engine) => ({ server: server.server, engine: engine.engine })));
}
const nameOf = ({ server, engine }) => `${shown(server, 40)} · ${engine}`;

function showEngines(now) {
  const engines = enginesOf(now);
  const select = byId("steps-engine");
  const names = engines.map(nameOf);
  if (names.join("\n") !== [...select.options].map((option) => option.textContent).join("\n")) {
    const chosen = select.selectedIndex >= 0 ? select.options[select.selectedIndex].textContent : null;
    select.replaceChildren(...names.map((name, at) => el("option", { value: String(at) }, name)));
    select.selectedIndex = Math.max(0, names.indexOf(chosen));
    select.closest("label").hidden = engines.length < 2;
  }
  state.engine = engines[Math.max(0, select.selectedIndex)] ?? null;
  setText(byId("servers"), now.servers.length === 0 ? (now.open_count === null ? "" : "no server is traced") : now.servers.map((server) => shown(server.server, 60)).join(", "));
}

function showLiveState(text, kind) {
  const element = byId("live-state");
  setText(element, text);
  element.className = `live ${kind}`;
}

async function ask() {
  const turn = state.turn;
  const isCurrent = () => turn === state.turn;
  const { place } = state;
  const [now, list] = await Promise.all([api.overview(), place ? null : api.requests(requests.filter(), requests.PAGE)]);
  if (!isCurrent() || state.place !== place) return;
  showStatus(now);
  state.before = now;
  state.overview = now;
  showEngines(now);
  showLiveState("live", "on");
  if (place) return;
  requests.options("model", now.models);
  const { open_count: open } = now;
  requests.update({ ...list, open_count: isFiltered() ? undefined : open });
  // Rows first: a browser paints between two tasks.
  await new Promise((go) => setTimeout(go));
  if (!isCurrent() || state.place) return;
  load.draw(now);
  document.title = open === null ? "Inferspan" : `${count(open)} open · Inferspan`;
  if (Date.now() - state.saidAt > SAY_EVERY) {
    state.saidAt = Date.now();
    say(`${open === null ? "open requests not known" : `${count(open)} requests open`}, ${count(list.total)} over`);
  }
  const made = state.engine ? await api.steps(state.engine, steps.newest(), null, STEPS) : { steps: [] };
  if (!isCurrent() || state.place) return;
  steps.add(made.steps);
  steps.showLive(now.now_ns);
}
const isFiltered = () => Object.values(requests.filter()).some((value) => value !== "");

async function turn() {
  clearTimeout(state.timer);
  let wait = EVERY;
  try {
    await ask();
  } catch (error) {
    wait = RETRY;
    const isOurs = !(error instanceof api.Failed);
    showLiveState(isOurs ? "this page failed" : "no answer", "off");
    say(error.message);
    byId("live-state").title = error.message;
    if (isOurs) throw error;
  } finally {
    clearTimeout(state.timer);
    if (!state.isPaused && !document.hidden) state.timer = setTimeout(turn, wait);
  }
}

/** Asks now; what is under way is of no use any more. */
function again() {
  state.turn += 1;
  turn();
}

function pause(isPaused) {
  state.isPaused = isPaused;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  if (isPaused) {
    clearTimeout(state.timer);
    state.turn += 1;
    showLiveState("paused", "paused");
    say("Paused");
  } else {
    again();
  }
}

function hashOf(filter) {
  const given = Object.entries(filter).filter(([, value]) => value !== "");
  return given.length ? `#/?${new URLSearchParams(given)}` : "#/";
}

function show() {
  const before = state.place;
  state.place = placeOf(location.hash);
  document.body.dataset.view = state.place ? "request" : "live";
  byId("request-view").hidden = !state.place;
  // The strip stands in the waterfall while a request is shown.
  byId("main").insertBefore(byId("steps"), byId("requests-panel"));
  if (state.place) {
    const { place } = state;
    const isCurrent = () => state.place === place;
    request.open(place.trace, place.span, state.overview ? enginesOf(state.overview) : [], close, isCurrent);
    return;
  }
  document.title = "Inferspan";
  const query = new URLSearchParams(location.hash.split("?")[1] ?? "");
  requests.setFilter(Object.fromEntries(["id", "path", "model", "outcome", "slower"].map((name) => [name, query.get(name) ?? ""])));
  if (before) {
    byId("request-view").replaceChildren();
    steps.leave();
    load.redraw();
    if (state.overview) steps.showLive(state.overview.now_ns);
    requests.focusOn(`${before.trace}/${before.span}`);
  }
  if (!state.isPaused || !state.overview) again();
}

function open(key) {
  state.from = location.hash;
  location.hash = `#/request/${key}`;
}

function close() {
  location.hash = state.from && !placeOf(state.from) ? state.from : hashOf(requests.filter());
}

let typing = null;
function filtered() {
  clearTimeout(typing);
  typing = setTimeout(() => {
    history.replaceState(null, "", hashOf(requests.filter()));
    requests.reset();
    again();
  }, 200);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  const isField = event.target.matches("input, select, textarea");
  if (event.key === "Escape") {
    if (isField) event.target.blur();
    else if (state.place) close();
    return;
  }
  if (isField) return;
  const acts = {
    "?": () => byId("keys").showModal(), p: () => pause(!state.isPaused), t: () => byId("theme").click(),
    ...(state.place ? {} : {
      "/": () => byId("filters").elements.id.focus(),
      ...(event.target.id === "steps-strip" ? {} : { ArrowDown: () => requests.move(1), ArrowUp: () => requests.move(-1) }),
      j: () => requests.move(1), k: () => requests.move(-1), s: () => byId("steps-strip").focus(),
    }),
  };
  if (!acts[event.key]) return;
  event.preventDefault();
  acts[event.key]();
}

steps.start();
requests.start((limit) => api.requests(requests.filter(), limit), filtered, open);
helpOnKeys();
byId("pause").addEventListener("click", () => pause(!state.isPaused));
byId("help").addEventListener("click", () => byId("keys").showModal());
byId("steps-engine").addEventListener("change", () => { steps.clear(); again(); });
addEventListener("keydown", onKey);
addEventListener("hashchange", show);
addEventListener("themechange", () => { load.redraw(); steps.draw(); });
new ResizeObserver(() => { load.redraw(); steps.draw(); }).observe(byId("main"));
document.addEventListener("visibilitychange", () => { if (!document.hidden && !state.isPaused) again(); });
show();
if (state.place) again();
