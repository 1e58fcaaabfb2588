// The cards: load and throughput over the last minutes, and how latencies are spread. Plots are uPlot's.

import { byId, colour, count, el, percent, rate, seconds, setText } from "./dom.js";

/* global uPlot */
const HEIGHT = 74;
const FONT = "10px system-ui, sans-serif";
const LATENCIES = [
  ["ttft", "Time to first token"],
  ["inter_token", "Between tokens"],
  ["e2e", "Whole request"],
];

const cards = new Map();

/** A card: a title, its numbers, its plot. Numbers are [name, text]. */
function card(key, title) {
  const numbers = el("dl", { class: "numbers" });
  const plot = el("div", { class: "plot", role: "img", "aria-label": title });
  const head = el("h2", {}, title);
  byId("cards").append(el("section", { class: "card", "aria-label": title }, el("header", {}, head, numbers), plot));
  const made = { numbers, plot, chart: null, values: new Map() };
  cards.set(key, made);
  return made;
}

function show(made, numbers, words) {
  for (const [name, text, mark] of numbers) {
    let value = made.values.get(name);
    if (!value) {
      value = el("dd");
      made.numbers.append(el("div", {}, el("dt", {}, mark ? el("i", { class: `line ${mark}` }) : null, name), value));
      made.values.set(name, value);
    }
    setText(value, text);
  }
  made.plot.setAttribute("aria-label", words);
}

/** Width that a card's plot has, pixels. */
const width = (made) => Math.max(120, Math.floor(made.plot.clientWidth));

const axis = (more) => ({
  stroke: () => colour("--dim"), font: FONT, size: 16, gap: 2, grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false }, ...more,
});
/** Times as minutes ago. */
const ago = axis({
  space: 60,
  splits: (chart) => {
    const end = chart.data[0].at(-1);
    return [240, 180, 120, 60, 0].map((before) => end - before).filter((at) => at >= chart.data[0][0]);
  },
  values: (chart, splits) => splits.map((at) => (chart.data[0].at(-1) - at === 0 ? "" : `−${Math.round((chart.data[0].at(-1) - at) / 60)} m`)),
});

function lines(made, series, data, scales, right) {
  if (made.chart) return made.chart.setData(data);
  const drawn = series.map(({ name, stroke, scale, fill, dash }) => ({
    label: name, scale, width: 1.25, dash, stroke: () => colour(stroke), fill: fill && (() => colour(fill)), points: { show: false }, spanGaps: false,
  }));
  const axes = [ago, axis({ scale: "y", size: 30, space: 24, values: (_, splits) => splits.map(short) })];
  if (right) axes.push(axis({ scale: right.scale, side: 1, size: 34, space: 24, grid: { show: false }, values: (_, splits) => splits.map(right.text) }));
  made.chart = new uPlot(
    {
      width: width(made), height: HEIGHT, padding: [6, right ? 0 : 6, 0, 0], legend: { show: false }, cursor: { show: false }, scales: { x: { time: false }, ...scales }, axes,
      series: [{}, ...drawn],
    },
    data,
    made.plot,
  );
}

const short = (value) => (value >= 1000 ? `${+(value / 1000).toFixed(1)}k` : String(+value.toFixed(2)));
const fromZero = { range: (_, __, most) => [0, Math.max(1, most * 1.1)] };

/** Means over so many seconds: a second has a request or none. */
const SMOOTH = 5;
const smooth = (values) =>
  values.map((_, at) => {
    const window = values.slice(Math.max(0, at - SMOOTH + 1), at + 1);
    return window.reduce((sum, value) => sum + (value ?? 0), 0) / window.length;
  });

function load(answer) {
  const engines = answer.servers.flatMap((server) => server.engines);
  const sum = (key) => (engines.some((engine) => engine[key] !== null) ? engines.reduce((all, engine) => all + (engine[key] ?? 0), 0) : null);
  const most = engines.reduce((high, engine) => Math.max(high, engine.kv_cache_usage ?? -1), -1);
  const made = cards.get("load") ?? card("load", "Engine load");
  const kv = most < 0 ? null : most;
  show(made, [["running", count(sum("running")), "running"], ["waiting", count(sum("waiting")), "waiting"], ["KV", percent(kv), "kv"]],
    `Engine load: ${count(sum("running"))} running, ${count(sum("waiting"))} waiting, KV cache ${percent(kv)} in use`);
  const of = (key, times = 1) => answer.series.map((second) => (second[key] === null ? null : second[key] * times));
  lines(made,
    [
      { name: "KV", stroke: "--kv", scale: "kv", fill: "--kv-fill" }, { name: "running", stroke: "--running", scale: "y" },
      { name: "waiting", stroke: "--waiting", scale: "y", dash: [4, 2] },
    ],
    [of("t"), of("kv_cache_usage", 100), of("running"), of("waiting")],
    { y: fromZero, kv: { range: [0, 100] } }, { scale: "kv", text: (value) => `${value} %` });
}

function throughput(answer) {
  const made = cards.get("rates") ?? card("rates", "Throughput");
  const of = (key) => smooth(answer.series.map((second) => second[key]));
  const [requests, tokens, failed] = [of("requests"), of("output_tokens"), of("failed")];
  // The second that goes on is not over.
  const last = (values) => values.at(-2) ?? values.at(-1) ?? null;
  show(made, [["req/s", rate(last(requests)), "running"], ["not ok", rate(last(failed)), "failed"], ["tok/s", count(last(tokens)), "tokens"]],
    `Throughput: ${rate(last(requests))} requests a second, ${rate(last(failed))} of them did not go well, ${count(last(tokens))} tokens a second`);
  lines(made,
    [
      { name: "tokens", stroke: "--tokens", scale: "tok", fill: "--tokens-fill" }, { name: "requests", stroke: "--running", scale: "y" },
      { name: "failed", stroke: "--bad", scale: "y", dash: [4, 2] },
    ],
    [answer.series.slice(0, -1).map((second) => second.t), tokens.slice(0, -1), requests.slice(0, -1), failed.slice(0, -1)],
    { y: fromZero, tok: fromZero }, { scale: "tok", text: short });
}

/** Buckets without the empty ones at both ends. */
function trimmed(buckets) {
  const first = buckets.findIndex(([, count]) => count > 0);
  const last = buckets.findLastIndex(([, count]) => count > 0);
  return first < 0 ? [] : buckets.slice(Math.max(0, first - 1), last + 2);
}

/** The range of so many bars; a few stand in the middle. */
function around(bars) {
  const room = Math.max(0.6, (9 - bars) / 2);
  return [-room, bars - 1 + room];
}

/** A bucket's edge, short. */
function bound(le) {
  if (le === undefined) return "";
  const of = (value) => `${+value.toPrecision(2)}`;
  return le < 0.001 ? `${of(le * 1e6)}µs` : le < 1 ? `${of(le * 1e3)}ms` : `${of(le)}s`;
}

function latency(answer, key, title) {
  const made = cards.get(key) ?? card(key, title);
  const { count: number, p50, p95, p99, buckets } = answer.latency[key];
  show(made, [["p50", seconds(p50)], ["p95", seconds(p95)], ["p99", seconds(p99)]],
    `${title}: ${count(number)} seen; half within ${seconds(p50)}, 95 % within ${seconds(p95)}, 99 % within ${seconds(p99)}`);
  const bars = trimmed(buckets);
  made.bounds = bars.map(([le]) => le);
  const data = [bars.map((_, at) => at), bars.map(([, inside]) => inside)];
  if (made.chart) return made.chart.setData(data);
  made.chart = new uPlot(
    {
      width: width(made), height: HEIGHT, padding: [6, 6, 0, 0], legend: { show: false }, cursor: { show: false },
      scales: { x: { time: false, range: () => around(made.bounds.length) }, y: fromZero },
      axes: [
        axis({ space: 38, grid: { show: false }, incrs: [1, 2, 3, 4, 5, 6, 8, 10], values: (_, splits) => splits.map((at) => bound(made.bounds[at])) }),
        axis({ size: 30, space: 24, values: (_, splits) => splits.map(short) }),
      ],
      series: [{}, { stroke: () => colour("--bars"), fill: () => colour("--bars"), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.86, 40], align: 0 }) }],
    },
    data,
    made.plot,
  );
}

export function draw(answer) {
  load(answer);
  throughput(answer);
  for (const [key, title] of LATENCIES) latency(answer, key, title);
}

/** After a change of the theme or of the width. */
export function redraw() {
  for (const made of cards.values()) {
    if (!made.chart || made.plot.clientWidth === 0) continue;
    made.chart.setSize({ width: width(made), height: HEIGHT });
    made.chart.redraw(false, true);
  }
}
