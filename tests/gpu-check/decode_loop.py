"""A small decode loop on a GPU, and what torch.profiler (CUPTI) saw of it.

Says `ready`, waits for a line, works, says `done`, waits for a line, and prints its account (src/truth.rs) as a line of JSON. The account is
read from the profiler's trace: a launch is a runtime or driver call with the correlation of a kernel; the kernels of a graph launch share
that launch's correlation, and are no launches. What a capture enqueued ran before `ready`.
"""

import collections
import json
import os
import re
import sys
import tempfile

import torch

STEPS = 50
HIDDEN = 1024
COPIES = {"HtoH": "h2h", "HtoD": "h2d", "DtoH": "d2h", "DtoD": "d2d", "PtoP": "p2p"}
WAITS = {"cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize"}


class Decoder:
    """Layers that are launched one by one, and the same as a graph."""

    def __init__(self):
        torch.manual_seed(0)
        self.weights = [torch.randn(HIDDEN, HIDDEN, device="cuda", dtype=torch.half) / 32 for _ in range(4)]
        self.norm = torch.nn.LayerNorm(HIDDEN, device="cuda", dtype=torch.half)
        self.tokens = torch.zeros(8, HIDDEN, dtype=torch.half, pin_memory=True)
        self.input = torch.zeros(8, HIDDEN, device="cuda", dtype=torch.half)
        self.answer = torch.zeros(8, HIDDEN, dtype=torch.half, pin_memory=True)
        self.graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):
                self.layers()
        torch.cuda.current_stream().wait_stream(side)
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.output = self.layers()

    def layers(self):
        hidden = self.input
        for weight in self.weights:
            hidden = torch.softmax(self.norm(hidden @ weight), dim=-1)
        return hidden

    def run(self, steps):
        with torch.no_grad():
            for step in range(steps):
                self.input.copy_(self.tokens, non_blocking=True)
                if step % 2:
                    self.graph.replay()
                    hidden = self.output
                else:
                    hidden = self.layers()
                self.answer.copy_(hidden, non_blocking=True)
                torch.cuda.synchronize()


def profiled(work):
    """Runs it, and gives the profiler's trace."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
    return profiler


def events_of(profiler):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path, encoding="utf-8") as file:
            return json.load(file)["traceEvents"]


def account_of(events):
    calls = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver") and event.get("ph") == "X"]
    caller = {call["args"]["correlation"]: call["name"] for call in calls if "correlation" in call.get("args", {})}
    launches, copies, strangers = collections.Counter(), {}, collections.Counter()
    for event in events:
        category = event.get("cat")
        if category not in ("kernel", "gpu_memcpy"):
            continue
        by = caller.get(event["args"].get("correlation"))
        if by is None:
            strangers[event["name"]] += 1
        elif "GraphLaunch" in by:
            continue
        elif category == "kernel":
            launches[event["name"]] += 1
        else:
            # "Memcpy HtoD (Pinned -> Device)"
            direction = re.match(r"Memcpy (\w+)", event["name"])
            kind = COPIES.get(direction.group(1) if direction else "", "unknown")
            amount = copies.setdefault(kind, {"count": 0, "bytes": 0})
            amount["count"] += 1
            amount["bytes"] += int(event["args"].get("bytes", 0))
    waits = [call for call in calls if call["name"] in WAITS]
    names = collections.Counter(call["name"] for call in calls)
    notes = [f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}"]
    notes.append("calls, as CUPTI saw them: " + ", ".join(f"{name} {count}" for name, count in sorted(names.items())))
    if strangers:
        notes.append(f"without a call in the trace, not counted: {dict(strangers)}")
    # The runtime's call and the driver's below it have one correlation.
    graphs = {call.get("args", {}).get("correlation") for call in calls if "GraphLaunch" in call["name"]}
    return {
        "launches": launches,
        "graph_launches": len(graphs),
        "copies": copies,
        "waits": len(waits),
        # Microseconds in the trace.
        "wait_ns": int(sum(call["dur"] for call in waits) * 1000),
        "ns_per_launch": None,
        "is_result_right": None,
        "notes": notes,
    }


def stop(word):
    print(word, flush=True)
    if not sys.stdin.readline():
        sys.exit("stdin is closed")


def main():
    decoder = Decoder()
    # CUPTI and the libraries behind the first calls are set up here, not while it is traced.
    profiled(lambda: decoder.run(4))
    stop("ready")
    profiler = profiled(lambda: decoder.run(STEPS))
    stop("done")
    print(json.dumps(account_of(events_of(profiler))), flush=True)


if __name__ == "__main__":
    main()
