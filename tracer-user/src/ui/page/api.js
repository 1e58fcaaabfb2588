// What the tracer answers. One schema; a page of another version says so instead of guessing.

const SCHEMA = "inferspan.ui/1";
/** An answer that takes longer does not come, ms. */
const PATIENCE = 10_000;

export class Failed extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function get(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const query = given.length ? `?${new URLSearchParams(given)}` : "";
  let response;
  try {
    response = await fetch(`/ui/api/${path}${query}`, { signal: AbortSignal.timeout(PATIENCE), headers: { accept: "application/json" } });
  } catch {
    throw new Failed("The tracer does not answer. It may have ended; this page goes on asking.", null);
  }
  if (!response.ok) throw new Failed(response.status === 404 ? "It is not kept (any more)." : `The tracer answered ${response.status}.`, response.status);
  const answer = await response.json();
  if (answer.schema !== SCHEMA) throw new Failed(`The tracer speaks another version (${String(answer.schema).slice(0, 40)}). Load this page again.`, response.status);
  return answer;
}

export const overview = () => get("overview");
export const requests = (filter, limit) => get("requests", { ...filter, limit });
export const request = (trace, span) => get(`request/${encodeURIComponent(trace)}/${encodeURIComponent(span)}`);
export const steps = (engine, from, to, limit) =>
  get("steps", { server: engine?.server, engine: engine?.engine, from_ns: from, to_ns: to, limit });
