"""Makes and reads traces. ``Trace`` reads one as its format is described, and knows nothing of who wrote it.

Chrome trace-event format: "X" is a slice with a duration, "s" and "f" are the two ends of an arrow (a flow), "C" is a
counter, "i" a mark, "M" a name. Times are in microseconds.
"""

from __future__ import annotations

import json
from collections import defaultdict

from pushsum_opt.cli import main

ROUNDING = 0.002


def trace_of(folder):
    """Make one trace of the timelines in a folder, and check it."""
    output = folder / "trace.json"
    assert main(["timeline", str(folder), "-o", str(output)]) == 0
    trace = Trace(output)
    trace.check()
    return trace


class Trace:
    def __init__(self, path):
        whole = json.loads(path.read_text(encoding="utf-8"))
        self.about = whole["otherData"]
        self.events = whole["traceEvents"]
        self.slices = [event for event in self.events if event["ph"] == "X"]
        self.arrows = self._arrows()

    def named(self, name):
        return [event for event in self.slices if event["name"] == name]

    def _arrows(self):
        ends = defaultdict(dict)
        for event in self.events:
            if event["ph"] in "sf":
                key = (event["cat"], event["name"], event["id"])
                assert event["ph"] not in ends[key], f"two ends of one kind: {event}"
                ends[key][event["ph"]] = event
        return [(both.get("s"), both.get("f")) for both in ends.values()]

    def check(self):
        assert {event["ph"] for event in self.events} <= set("XsfCiMBE")
        self._check_begins_and_ends()
        self._check_nesting()
        self._check_arrows()

    def _check_begins_and_ends(self):
        stacks = defaultdict(list)
        for event in self.events:
            if event["ph"] == "B":
                stacks[event["pid"], event["tid"]].append(event["name"])
            if event["ph"] == "E":
                stacks[event["pid"], event["tid"]].pop()
        assert not any(stacks.values())
        assert all(event["dur"] >= 0 for event in self.slices)

    def _check_nesting(self):
        tracks = defaultdict(list)
        for event in self.slices:
            tracks[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"], event["name"]))
        for track in tracks.values():
            inside = []
            for begin, end, name in sorted(track, key=lambda one: (one[0], -one[1])):
                while inside and inside[-1] <= begin + ROUNDING:
                    inside.pop()
                assert not inside or end <= inside[-1] + ROUNDING, f"{name} ends outside the slice that it is in"
                inside.append(end)

    def _check_arrows(self):
        for start, finish in self.arrows:
            assert start is not None, f"no start: {finish}"
            assert finish is not None, f"no end: {start}"
            assert start["pid"] != finish["pid"]
            for end in (start, finish):
                assert any(
                    one["pid"] == end["pid"]
                    and one["tid"] == end["tid"]
                    and one["ts"] - ROUNDING <= end["ts"] <= one["ts"] + one["dur"] + ROUNDING
                    for one in self.slices
                ), f"no slice holds {end}"
            assert finish["ts"] - start["ts"] >= -self.about["clock_error_us"], "an arrow points backwards"
