from __future__ import annotations

import asyncio
import math
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from vmtenancy.kube.client import Client
from vmtenancy.kube.lease import LEASES, Lease
from vmtenancy.testing.controlplane import ControlPlane
from vmtenancy.testing.faults import Delay, FaultProxy, Rule

pytestmark = pytest.mark.cluster
Until = Callable[..., Awaitable[None]]
DURATION_S = 2.0


def lease(
    client: Client, identity: str, told: list[str] | None = None, duration_s: float = DURATION_S
) -> Lease:
    def on_change(held: bool) -> None:
        if told is not None:
            told.append(f"{identity} {'holds' if held else 'lost'}")

    return Lease(
        client,
        namespace="default",
        name="test",
        identity=identity,
        duration_s=duration_s,
        on_change=on_change,
    )


@asynccontextmanager
async def running(*candidates: Lease) -> AsyncIterator[list[asyncio.Task[None]]]:
    tasks: list[asyncio.Task[None]] = [asyncio.create_task(candidate.run()) for candidate in candidates]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(end, asyncio.CancelledError), end


async def stored(client: Client) -> dict[str, object]:
    spec: dict[str, object] = (await client.get(LEASES, "default", "test"))["spec"]
    return spec


async def test_one_of_two_holds_it_and_keeps_it(client: Client, until: Until) -> None:
    told: list[str] = []
    a, b = lease(client, "a", told), lease(client, "b", told)
    async with running(a, b):
        await until(lambda: a.held() or b.held())
        holder = a if a.held() else b
        first = await stored(client)
        end = time.monotonic() + 4 * DURATION_S
        while time.monotonic() < end:
            assert a.held() != b.held()
            last = await stored(client)
        assert last["renewTime"] != first["renewTime"]
    assert told == [f"{holder.identity} holds"]
    assert (last["holderIdentity"], last["leaseTransitions"]) == (holder.identity, 0)
    assert last["acquireTime"] == first["acquireTime"]


async def test_given_back_it_is_taken_at_once(client: Client, until: Until) -> None:
    long_s = 30.0
    a, b = lease(client, "a", duration_s=long_s), lease(client, "b", duration_s=long_s)
    async with running(a) as [task]:
        await until(a.held)
        async with running(b):
            task.cancel()
            await asyncio.wait([task])
            before = time.monotonic()
            await a.release()
            assert not a.held()
            await until(b.held)
            assert time.monotonic() - before < long_s / 2, "nobody waited for it to expire"
            assert (await stored(client))["leaseTransitions"] == 1


async def test_a_holder_that_can_not_renew_stops_before_another_starts(
    behind_proxy: Client, proxy: FaultProxy, client: Client, until: Until
) -> None:
    told: list[str] = []
    a, b = lease(behind_proxy, "a", told), lease(client, "b", told)
    async with running(a):
        await until(a.held)
        async with running(b):
            proxy.add(
                Rule(lambda call: True, Delay(math.inf, answer=True), times=None)
            )  # renewals hang, not fail
            await until(b.held)
            assert not a.held()
            proxy.clear()
            await until(lambda: len(told) >= 3)
            assert told == ["a holds", "a lost", "b holds"]


_CANDIDATE = """
import asyncio, sys
from pathlib import Path
from vmtenancy.kube.client import Client
from vmtenancy.kube.lease import Lease

async def main():
    async with await Client.connect(Path(sys.argv[1])) as client:
        lease = Lease(client, namespace="default", name="test", identity="paused", duration_s=float(sys.argv[2]))
        asyncio.create_task(lease.run())
        said = None
        while True:
            if lease.held() != said:
                said = lease.held()
                print("held" if said else "not held", flush=True)
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


async def test_a_paused_process_does_not_believe_that_it_still_leads(
    cluster: ControlPlane, client: Client, until: Until, tmp_path: Path
) -> None:
    script = tmp_path / "candidate.py"
    script.write_text(_CANDIDATE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(cluster.kubeconfig), str(DURATION_S), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        async with asyncio.timeout(60):
            while await process.stdout.readline() != b"held\n":
                pass
        process.send_signal(signal.SIGSTOP)
        other = lease(client, "other")
        async with running(other):
            await until(other.held)
            process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(10):
                assert await process.stdout.readline() == b"not held\n"
            assert other.held()
    finally:
        process.kill()
        await process.wait()


async def test_many_candidates_never_lead_together(client: Client, until: Until) -> None:
    """Leaders give up one after the other; at no moment do two hold it."""
    candidates = [lease(client, f"c{number}") for number in range(5)]
    terms = 0
    async with running(*candidates) as tasks:
        waiting = list(zip(candidates, tasks, strict=True))
        while waiting:
            await until(lambda: any(candidate.held() for candidate in candidates))
            holders = [candidate for candidate in candidates if candidate.held()]
            assert len(holders) == 1
            [(candidate, task)] = [(c, t) for c, t in waiting if c is holders[0]]
            waiting.remove((candidate, task))
            task.cancel()
            await asyncio.wait([task])
            await candidate.release()
            terms += 1
    assert terms == 5
    assert (await stored(client))["holderIdentity"] == ""
