"""Placement on 10,000 nodes of 8 GPUs: decisions per second, beside a plain loop over nodes in the same run.

Absolute figures are reported; what passes or fails are ratios within the run: the arrays against the loop, and the
start of a Python that imports vmtenancy against one that imports nothing. The loop also checks the answers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from vmtenancy import PARTS_PER_GPU, DeviceFacts, Fleet, Mode, NodeFacts, Offering, Placement, Pool, Runtime
from vmtenancy.core.placement.best_fit import Request, best_fit

NODES, GPUS = 10_000, 8
DECISIONS, BY_LOOP = 4_000, 40
LEAST_SPEEDUP = 10
MOST_START_UP = 3.0
WHOLE = Offering(
    "whole", "h100", PARTS_PER_GPU, {Mode.CONTAINER: "nvidia.com/gpu", Mode.PASSTHROUGH: "nvidia.com/H100"}
)
QUARTER = Offering("quarter", "h100", PARTS_PER_GPU // 4, {Mode.VGPU: "nvidia.com/H100-20C"})
MODES = {Runtime.VM: (Mode.PASSTHROUGH, Mode.VGPU), Runtime.POD: (Mode.CONTAINER,)}


def describe() -> list[NodeFacts]:
    """Half of the nodes passthrough, a quarter vGPU, a quarter container."""
    devices = tuple(DeviceFacts(f"0000:{i:02x}:00.0") for i in range(GPUS))
    ways = [(Mode.PASSTHROUGH, "nvidia.com/H100", 1), (Mode.VGPU, "nvidia.com/H100-20C", 4)]
    ways = [ways[0], ways[1], ways[0], (Mode.CONTAINER, "nvidia.com/gpu", 1)]
    return [
        NodeFacts(
            f"node-{n:05}",
            mode,
            product="H100",
            devices=devices,
            capacity={resource: per_gpu * GPUS},
            cpu=128_000,
            memory=1 << 40,
        )
        for n in range(NODES)
        for mode, resource, per_gpu in [ways[n % 4]]
    ]


def requests(seed: int = 1) -> Iterator[Request]:
    """Machines with whole GPUs, machines with vGPUs, and pods; the same on every run."""
    random = np.random.default_rng(seed)
    while True:
        count, cpu = int(random.choice([1, 1, 1, 2, 2, 4, 8])), int(random.integers(1, 9)) * 1000
        runtime, offering = [(Runtime.VM, WHOLE), (Runtime.VM, QUARTER), (Runtime.POD, WHOLE)][
            int(random.integers(3))
        ]
        yield Request(runtime, ((offering, count),), cpu * count, count << 33)


class Loop:
    """The same policy, written plainly: look at every node, keep the best."""

    def __init__(self, nodes: list[NodeFacts]) -> None:
        self.nodes = nodes
        self.free = [[PARTS_PER_GPU] * GPUS for _ in nodes]
        self.left = [dict(node.capacity) for node in nodes]
        self.cpu = [node.cpu for node in nodes]
        self.memory = [node.memory for node in nodes]

    def place(self, request: Request) -> str | None:
        """The name of the best node; what the request takes is taken."""
        ((offering, count),) = request.units
        best: tuple[int, int, int] | None = None
        for n, node in enumerate(self.nodes):
            if (
                not node.schedulable
                or node.mode not in MODES[request.runtime]
                or node.mode not in offering.resources
            ):
                continue
            if self.cpu[n] < request.cpu or self.memory[n] < request.memory:
                continue
            if self.left[n].get(offering.resources[node.mode], 0) < count:
                continue
            if sum(free // offering.parts for free in self.free[n]) < count:
                continue
            score = (sum(self.free[n]), self.cpu[n], n)
            if best is None or score < best:
                best = score
        if best is None:
            return None
        n = best[2]
        for _ in range(count):
            g = min(
                (g for g in range(GPUS) if self.free[n][g] >= offering.parts),
                key=lambda g: (self.free[n][g], g),
            )
            self.free[n][g] -= offering.parts
        mode = self.nodes[n].mode
        assert mode is not None
        self.left[n][offering.resources[mode]] -= count
        self.cpu[n] -= request.cpu
        self.memory[n] -= request.memory
        return self.nodes[n].name


def start_up() -> tuple[float, float]:
    """Seconds that a new interpreter takes: to do nothing, and to import vmtenancy. The best of 7, taken in turns."""
    root = Path(__file__).parents[1]

    def once(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], cwd=root, check=True)
        return time.perf_counter() - began

    pairs = [(once("pass"), once("import vmtenancy")) for _ in range(7)]
    return min(bare for bare, _ in pairs), min(ours for _, ours in pairs)


def main() -> int:
    """Measure, print one line of JSON, and fail where a ratio is too low."""
    nodes = describe()
    began = time.perf_counter()
    fleet = Fleet.build(nodes, [Pool("h100")], [WHOLE, QUARTER])
    built = time.perf_counter() - began
    loop, stream = Loop(nodes), requests()
    by_loop: list[float] = []
    by_arrays: list[float] = []
    for _ in range(BY_LOOP):
        request = next(stream)
        began = time.perf_counter()
        answer = best_fit(fleet, request)
        if isinstance(answer, Placement):
            fleet.hold(answer)
        middle = time.perf_counter()
        expected = loop.place(request)
        by_arrays.append(middle - began)
        by_loop.append(time.perf_counter() - middle)
        assert (answer.node if isinstance(answer, Placement) else None) == expected
    placed, wanted = 0, list(islice(stream, DECISIONS))
    began = time.perf_counter()
    for request in wanted:
        answer = best_fit(fleet, request)
        if isinstance(answer, Placement):
            fleet.hold(answer)
            placed += 1
    seconds = time.perf_counter() - began
    # Medians: another program on the machine must not decide.
    loop_s = statistics.median(by_loop)
    speedup = loop_s / statistics.median(by_arrays)
    bare, ours = start_up()
    print(
        json.dumps(
            {
                "nodes": NODES,
                "gpus": NODES * GPUS,
                "build_s": round(built, 3),
                "decisions_per_s": round(DECISIONS / seconds),
                "placed": placed,
                "loop_decisions_per_s": round(1 / loop_s, 1),
                "speedup": round(speedup, 1),
                "import_s": round(ours - bare, 3),
                "start_up_ratio": round(ours / bare, 2),
            }
        )
    )
    failed = []
    if speedup < LEAST_SPEEDUP:
        failed.append(f"only {speedup:.1f} times as fast as a plain loop; at least {LEAST_SPEEDUP} expected")
    if ours > MOST_START_UP * bare:
        failed.append(f"import vmtenancy takes {ours:.3f} s with start-up, {bare:.3f} s without")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
