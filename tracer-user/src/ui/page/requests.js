// The table of requests: open ones, then those that are over, newest first, a page at a time.
//
// The first page is live. Any other is of one picture, taken when it was turned to: rows that moved while they are read are of no use.

import { byId, clock, count, dateOf, el, plural, seconds, setText, shown } from "./dom.js";
import { bar, fill, legend } from "./phases.js";

/** Rows of a page. */
export const PAGE = 50;
/** Rows that are asked for to turn pages in. */
const PICTURE = 5000;
/** Open requests that are shown before one asks for more; the oldest. */
const OPEN_FEW = 4;

const state = { page: 0, picture: null, answer: null, allOpen: false, ask: null, open: null };
const rows = new Map();

const OUTCOMES = {
  stop: ["ok", "stop"], length: ["ok", "length"], abort: ["warn", "abort"], error: ["bad", "error"], rejected: ["bad", "rejected"], unknown: ["warn", "unknown"],
};
const STAGES = { front_end: "front end", waiting: "waiting", producing: "producing", finishing: "finishing" };

export const keyOf = (request) => `${request.trace_id}/${request.span_id}`;
export const startOf = (request) => dateOf(request.start_ns);

export function outcome(name) {
  const [kind, word] = OUTCOMES[name] ?? ["warn", name ?? "unknown"];
  return el("span", { class: `outcome ${kind}` }, shown(word, 20));
}

/** Between tokens, on average. */
const perToken = (request) => {
  const decode = request.seconds?.decode ?? null;
  return decode !== null && request.output_tokens > 1 ? decode / (request.output_tokens - 1) : null;
};
const e2e = (request) => request.seconds?.e2e ?? 0;

/** The end of an id tells more than its beginning, which all have, and which goes where there is no room. */
function shortId(id) {
  const text = shown(id, 80);
  const start = text.length > 22 ? 9 : Math.max(0, text.length - 11);
  const rest = text.length > 22 ? `…${text.slice(-10)}` : text.slice(start);
  return [el("span", { class: "first" }, text.slice(0, start)), el("span", {}, rest)];
}

const cell = (name, ...children) => el("td", { class: `c-${name}` }, ...children);
const number = (name, text) => el("td", { class: `c-${name} n` }, text);

function makeRow(request) {
  const track = bar();
  const id = request.request_id ?? request.trace_id;
  const link = el("a", { href: `#/request/${keyOf(request)}`, title: shown(id, 300), tabindex: "-1" }, ...shortId(id));
  const text = (name, value) => cell(name, el("span", { class: "cut", title: shown(value, 300) }, shown(value, 120)));
  const lost = request.incomplete ? el("span", { class: "lost", title: `not all of it was seen: ${shown(request.incomplete)}` }, "◐", el("span", { class: "sr" }, " partly seen")) : null;
  const again = request.preemptions > 0 ? el("span", { class: "mark", title: plural(request.preemptions, "preemption") }, `↺${request.preemptions}`) : null;
  const row = el("tr", { "data-key": keyOf(request) },
    cell("time", clock(dateOf(endOf(request)))), el("th", { class: "c-id", scope: "row" }, link), text("path", request.path), text("model", request.model),
    cell("outcome", outcome(request.outcome), again, lost), cell("phases", track),
    number("e2e", seconds(request.seconds?.e2e)), number("ttft", seconds(request.seconds?.ttft)), number("token", seconds(perToken(request))),
    number("in", count(request.prompt_tokens)), number("out", count(request.output_tokens)));
  return { row, track, request };
}

/** Of its start and its length: what the access log calls `time`, in ns. */
function endOf(request) {
  return BigInt(request.start_ns) + BigInt(Math.round(e2e(request) * 1e9));
}

/** Puts `wanted` rows into `body` in their order; a row that stays is not touched, so that it keeps the focus. */
function place(body, wanted) {
  const stays = new Set(wanted);
  for (const row of [...body.children]) if (!stays.has(row)) row.remove();
  wanted.forEach((row, at) => {
    if (body.children[at] !== row) body.insertBefore(row, body.children[at] ?? null);
  });
}

function showFinished(list, whole) {
  const wanted = list.map((request) => {
    const key = keyOf(request);
    let made = rows.get(key);
    if (!made) rows.set(key, (made = makeRow(request)));
    fill(made.track, request.phases, whole, e2e(request));
    return made.row;
  });
  place(byId("rows"), wanted);
  if (rows.size > 4 * PAGE) {
    const stays = new Set(list.map(keyOf));
    for (const key of rows.keys()) if (!stays.has(key)) rows.delete(key);
  }
}

function openRow() {
  const track = bar();
  const cells = Object.fromEntries(["time", "id", "path", "model", "outcome", "e2e", "ttft", "token", "in", "out"].map((name) => [name, cell(name)]));
  const named = ["e2e", "ttft", "token", "in", "out"];
  for (const name of named) cells[name].classList.add("n");
  const { time, id, path, model, outcome, ...rest } = cells;
  const row = el("tr", { class: "open" }, time, id, path, model, outcome, cell("phases", track), named.map((name) => rest[name]));
  return { row, track, cells };
}

/** How many are open, in the answer or not; with a filter only those in it are known. Null where nobody looked of late. */
const openCount = ({ open, open_count }) => (open === null || open_count === null ? null : open_count ?? open.length);

const openRows = [];
function showOpen(open, whole) {
  const most = state.allOpen ? open.length : OPEN_FEW;
  const list = open.slice(0, most);
  while (openRows.length < list.length) openRows.push(openRow());
  list.forEach((request, at) => {
    const { track, cells } = openRows[at];
    const first = request.phases.find((of) => of.name === "decode");
    setText(cells.time, "open");
    if (cells.id.title !== shown(request.id)) {
      cells.id.title = shown(request.id);
      cells.id.replaceChildren(...shortId(request.id));
    }
    setText(cells.path, shown(request.route, 120));
    setText(cells.model, shown(request.model, 120));
    setText(cells.outcome, `${STAGES[request.stage] ?? shown(request.stage, 20)}${request.preemptions > 0 ? ` ↺${request.preemptions}` : ""}`);
    setText(cells.e2e, seconds(request.age_s));
    setText(cells.ttft, seconds(first?.start_s));
    setText(cells.token, seconds(first && request.output_tokens > 1 ? first.seconds / (request.output_tokens - 1) : null));
    setText(cells.in, count(request.prompt_tokens));
    setText(cells.out, count(request.output_tokens));
    fill(track, request.phases, whole, request.age_s);
  });
  place(byId("open-rows"), openRows.slice(0, list.length).map(({ row }) => row));
  const button = byId("more-open");
  button.hidden = open.length <= OPEN_FEW;
  setText(button, state.allOpen ? `${OPEN_FEW} oldest open` : open.length < openCount(state.answer) ? `${open.length} oldest open` : "all open");
}

/** What the whole width of bars stands for, s: of the longest, unless it would make all others too small to see. */
function wholeOf(seen) {
  const sorted = [...seen].sort((a, b) => a - b);
  const most = sorted.at(-1) ?? 0;
  return Math.max(1e-6, Math.min(most, 3 * (sorted[Math.floor(sorted.length * 0.8)] ?? most)));
}

function render() {
  const { answer, picture, page } = state;
  const source = picture ?? answer;
  if (!source) return;
  const list = source.requests.slice(page * PAGE, (page + 1) * PAGE);
  const open = page === 0 ? answer.open ?? [] : [];
  const seen = [...list.map(e2e), ...open.slice(0, state.allOpen ? open.length : OPEN_FEW).map((request) => request.age_s)];
  const whole = wholeOf(seen);
  showOpen(open, whole);
  showFinished(list, whole);
  const within = picture ? picture.total : answer.total;
  const from = page * PAGE;
  setText(byId("page"), list.length ? `${count(from + 1)}–${count(from + list.length)} of ${count(within)}` : "");
  const reachable = Math.min(within, PICTURE);
  byId("older").disabled = from + PAGE >= reachable;
  byId("newer").disabled = page === 0;
  byId("newest").disabled = page === 0;
  const missed = picture ? answer.total - picture.total : 0;
  setText(byId("newest"), missed > 0 ? `Newest (${count(missed)} new)` : "Newest");
  const atLeast = answer.open_count === undefined && open.length >= PAGE ? " or more" : "";
  const known = openCount(answer);
  setText(byId("count"), `${known === null ? "not known which are" : `${count(known)}${atLeast}`} open, ${count(answer.total)} over`);
  setText(byId("scale"), `, to ${seconds(whole)}`);
  byId("clear").hidden = !isFiltered();
  byId("empty").hidden = list.length + open.length > 0 || (known === null && !isFiltered());
  setText(byId("empty"), isFiltered() ? "No request that is kept passes the filter." : "No request yet. Those that begin from now on are seen: send one to the server.");
  rove();
}

/** One link of the table is in the tab order; arrows move between them. */
function rove(target) {
  const links = [...byId("rows").querySelectorAll("th a")];
  const current = target ?? links.find((link) => link.tabIndex === 0) ?? links[0];
  for (const link of links) {
    const at = link === current ? 0 : -1;
    if (link.tabIndex !== at) link.tabIndex = at;
  }
}

/** Moves the focus by so many rows. */
export function move(by) {
  const links = [...byId("rows").querySelectorAll("th a")];
  if (links.length === 0) return;
  const at = links.indexOf(document.activeElement);
  const next = at < 0 ? links.find((link) => link.tabIndex === 0) ?? links[0] : links[Math.max(0, Math.min(links.length - 1, at + by))];
  rove(next);
  next.focus();
  next.closest("tr").scrollIntoView({ block: "nearest" });
}

/** Where one came from, when a request is left. */
export function focusOn(key) {
  const made = rows.get(key);
  if (!made?.row.isConnected) return move(0);
  const link = made.row.querySelector("a");
  rove(link);
  link.focus();
}

const form = () => byId("filters");
export function filter() {
  const values = Object.fromEntries(new FormData(form()));
  for (const key of Object.keys(values)) values[key] = values[key].trim();
  return values;
}
const isFiltered = () => Object.values(filter()).some((value) => value !== "");

/** Options of a filter, those that were seen; what is chosen stays. */
export function options(name, values) {
  const select = form().elements[name];
  const known = new Set([...select.options].map((option) => option.value));
  for (const value of values) if (!known.has(value)) select.append(el("option", { value }, shown(value, 60)));
}

export function setFilter(values) {
  for (const [name, value] of Object.entries(values)) {
    const field = form().elements[name];
    if (!field) continue;
    if (field.tagName === "SELECT" && value) options(name, [value]);
    field.value = value;
  }
}

/** The newest answer. */
export function update(answer) {
  state.answer = answer;
  render();
}

async function turn(page) {
  if (page > 0 && !state.picture) state.picture = await state.ask(PICTURE);
  state.page = page;
  if (page === 0) state.picture = null;
  render();
  rove(byId("rows").querySelector("th a"));
}

/** Back to the live page: of another filter, another picture. */
export function reset() {
  state.page = 0;
  state.picture = null;
}

/** `ask(limit)` answers as the filter says; `filtered` is told that it changed; `open(key)` opens a request. */
export function start(ask, filtered, open) {
  Object.assign(state, { ask, open });
  legend(byId("phases-legend"));
  options("outcome", Object.keys(OUTCOMES));
  const failed = (turned) => turned.catch((error) => setText(byId("page"), error.message));
  byId("older").addEventListener("click", () => failed(turn(state.page + 1)));
  byId("newer").addEventListener("click", () => failed(turn(state.page - 1)));
  byId("newest").addEventListener("click", () => failed(turn(0)));
  byId("more-open").addEventListener("click", () => { state.allOpen = !state.allOpen; render(); });
  form().addEventListener("input", filtered);
  form().addEventListener("reset", () => setTimeout(filtered));
  form().addEventListener("submit", (event) => event.preventDefault());
  byId("rows").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    const plain = !event.target.closest("a") && getSelection().isCollapsed;
    if (row && plain) open(row.dataset.key);
  });
  byId("rows").addEventListener("focusin", (event) => {
    if (event.target.matches("th a")) rove(event.target);
  });
}
