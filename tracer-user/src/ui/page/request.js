// One request: what it was, why it took as long, its waterfall, and the span that is selected.

import * as api from "./api.js";
import { between, byId, clock, count, dateOf, el, percent, seconds, setText, shown } from "./dom.js";
import { outcome } from "./requests.js";
import * as steps from "./steps.js";
import { isInferred, waterfall } from "./waterfall.js";

/** Steps of a request that the strip shows at most; its last. */
const STEPS = 4000;
/** A link's step and those around it, when it is not among them: this long before and after, ns. */
const AROUND = 500_000_000n;
/** Characters of an attribute's value that are shown. */
const VALUE = 20_000;

const KINDS = {
  queued: "Waited in the queue", grammar: "Its grammar was compiled", preempted: "Preempted", long_prefill: "Long prefill", prefill_of_others: "Prefill of other requests", slow_tokenizer: "Slow tokenizer",
  pipelined: "Behind another on its connection", slow_request: "Slow request", slow_client: "Slow client", front_end_late: "Front end late", slow_steps: "Slow engine steps", engine_error: "Engine error", launch_bound: "Launch-bound",
  sync_bound: "Sync-bound", eager_fallback: "Fell back to eager", straggler: "Straggling rank", many_tokens: "Many tokens",
};
const words = (kind) => KINDS[kind] ?? shown(kind, 40).replaceAll("_", " ");

function verdict(why) {
  const { causes, unseen } = why;
  const rows = causes.map((cause) => {
    const meter = el("span", { class: "share", "aria-hidden": "true" }, el("i"));
    meter.firstChild.style.setProperty("width", `${Math.min(100, cause.share * 100)}%`);
    const about = cause.inferred ? "~" : "";
    return el("li", {},
      el("span", { class: "cause" }, words(cause.kind)), meter, el("span", { class: "n" }, `${about}${seconds(cause.seconds)}`), el("span", { class: "n" }, `${about}${percent(cause.share)}`),
      el("span", { class: "evidence" }, cause.inferred ? el("abbr", { title: "inferred, not observed" }, "~") : null, shown(cause.evidence, 1000)));
  });
  const none = el("p", { class: "none" }, "Nothing stands out: no part of its time has a cause that was seen.");
  const missing = unseen.length === 0 ? null : el("details", { class: "unseen" }, el("summary", {}, `Not seen: ${unseen.length}`), el("ul", {}, unseen.map((text) => el("li", {}, shown(text, 500)))));
  return el("section", { class: "why", "aria-labelledby": "why-title" }, el("h3", { id: "why-title" }, "Why"), rows.length ? el("ol", {}, rows) : none, missing);
}

function facts(record, spans) {
  const root = spans[0];
  const times = record.seconds ?? {};
  const pair = (name, value) => el("div", {}, el("dt", {}, name), el("dd", {}, value));
  return el("dl", { class: "facts" },
    pair("total", seconds(times.e2e)), pair("first token", seconds(times.ttft)), pair("queue", seconds(times.queue)), pair("prefill", seconds(times.prefill)),
    pair("decode", seconds(times.decode)), pair("prompt", `${count(record.prompt_tokens)}${record.cached_tokens ? ` (${count(record.cached_tokens)} cached)` : ""}`),
    pair("output", count(record.output_tokens)), pair("preempted", (record.preemptions ?? null) === null ? "–" : `${count(record.preemptions)}×`), pair("status", (record.status ?? null) === null ? "–" : String(record.status)),
    pair("began", clock(dateOf(root.start_ns))));
}

function value(of) {
  if (Array.isArray(of)) return el("ul", { class: "list" }, of.map((one) => el("li", {}, value(one))));
  if (typeof of === "number") return of.toLocaleString("en", { maximumSignificantDigits: 9 });
  if (of !== null && typeof of === "object") return shown(JSON.stringify(of), VALUE);
  return shown(of, VALUE);
}

/** A key, which may be broken behind its dots and underscores. */
const breakable = (key) => key.split(/(?<=[._])/).flatMap((part) => [part, el("wbr")]);

const table = (attributes) =>
  el("table", { class: "attributes" }, el("tbody", {}, Object.entries(attributes).map(([key, of]) => el("tr", {}, el("th", { scope: "row" }, breakable(shown(key, 200))), el("td", {}, value(of))))));

/** The span that is selected. */
function details(panel, node, root, jump) {
  const { span } = node;
  const at = (ns) => seconds(between(root.start_ns, ns));
  const parts = [
    el("h3", {}, shown(span.name, 80)),
    el("p", { class: "dim" }, `${at(span.start_ns)} to ${at(span.end_ns)}, ${seconds(node.to - node.from)}${isInferred(span) ? "; inferred, not observed" : ""}`),
  ];
  if (span.links.length > 0) {
    const names = span.links.slice(0, 32).map((link, index) => el("li", {}, el("button", { type: "button", onclick: () => jump(link, span) }, span.links.length === 1 ? "Show its engine step" : `Engine step ${index + 1}`)));
    parts.push(el("ul", { class: "links" }, names));
  }
  if (span.events.length > 0) {
    parts.push(el("h4", {}, "Events"), el("ul", { class: "events" }, span.events.map((event) => el("li", {}, el("b", {}, shown(event.name, 80)), ` ${at(event.at_ns)}`, Object.keys(event.attributes).length ? table(event.attributes) : null))));
  }
  parts.push(el("h4", {}, "Attributes"), table(span.attributes), el("p", { class: "dim id" }, `span ${shown(span.span_id, 40)}`));
  panel.replaceChildren(...parts);
}

async function showSteps(answer, engine, isCurrent) {
  const root = answer.spans[0];
  const { steps: found } = await api.steps(engine, root.start_ns, root.end_ns, STEPS);
  if (isCurrent()) steps.showOf(found, root.start_ns);
}

/** Shows the step that a link names, of whatever engine it is. */
async function jump(link, span, root, said) {
  if (steps.jump(link.trace_id, link.span_id)) return setText(said, "");
  // It is of another engine, or its request has more steps than were asked for.
  const [from, to] = [BigInt(span.start_ns) - AROUND, BigInt(span.end_ns) + AROUND];
  const { steps: found } = await api.steps(null, String(from), String(to), STEPS);
  const step = found.find((of) => of.trace_id === link.trace_id && of.span_id === link.span_id);
  if (!step) return setText(said, "That step is not kept (any more).");
  steps.showOf(found.filter((of) => of.server === step.server && of.engine === step.engine), root.start_ns);
  steps.jump(link.trace_id, link.span_id);
  setText(said, "");
}

function head(record, close) {
  const id = record.request_id ?? record.trace_id;
  const line = [record.method, record.path].filter(Boolean).map((part) => shown(part, 120)).join(" ");
  return el("header", { class: "request-head" },
    el("button", { type: "button", class: "back", onclick: close, "aria-keyshortcuts": "Escape" }, "← Requests"),
    el("h2", { id: "request-title", tabindex: "-1" }, el("bdi", { class: "cut" }, shown(id, 120)), outcome(record.outcome)),
    el("p", { class: "dim" }, el("bdi", {}, line), " · ", el("bdi", {}, shown(record.model, 120)), " · ", el("bdi", {}, shown(record.server, 80)), " · trace ", el("code", {}, record.trace_id)),
    record.incomplete ? el("p", { class: "note" }, `Not all of it was seen: ${shown(record.incomplete, 400)}`) : null);
}

/** Shows a request; `close` leaves it. `engines` are those that are known; a request says of which it was. */
export async function open(trace, span, engines, close, isCurrent) {
  const view = byId("request-view");
  view.setAttribute("aria-busy", "true");
  let answer;
  try {
    answer = await api.request(trace, span);
  } catch (error) {
    if (!isCurrent()) return;
    const back = el("button", { type: "button", class: "back", onclick: close }, "← Requests");
    view.replaceChildren(el("header", { class: "request-head" }, back, el("h2", { id: "request-title", tabindex: "-1" }, "This request cannot be shown"), el("p", { role: "alert" }, error.message)));
    view.removeAttribute("aria-busy");
    byId("request-title").focus();
    return;
  }
  if (!isCurrent()) return;
  const { record, spans, why } = answer;
  steps.leave();
  steps.showOf([], spans[0].start_ns);
  const said = el("p", { class: "said", role: "status" });
  const panel = el("aside", { class: "span-panel", "aria-label": "Selected span" });
  const failed = (asked) => asked.catch((error) => setText(said, error.message));
  const fall = waterfall(spans, byId("steps"), (node) => details(panel, node, spans[0], (link, of) => failed(jump(link, of, spans[0], said))), steps.zoom);
  view.replaceChildren(head(record, close), facts(record, spans), verdict(why ?? { causes: [], unseen: [] }), el("div", { class: "fall" }, fall, panel), said);
  view.removeAttribute("aria-busy");
  document.title = `${shown(record.request_id ?? record.trace_id, 40)} · Inferspan`;
  byId("request-title").focus({ preventScroll: true });
  scrollTo(0, 0);
  const index = spans.map((of) => of.attributes["inferspan.engine.index"]).find((of) => of !== undefined);
  const engine = engines.find((of) => of.server === record.server && of.engine === (index ?? 0)) ?? { server: record.server, engine: index ?? 0 };
  await failed(showSteps(answer, engine, isCurrent));
}
