"""One status from the PCI tree, NVML and what was known before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pci_tree
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmtenancy.api import parse
from vmtenancy.api.gpunode import GpuNodeStatus
from vmtenancy.api.names import API_VERSION
from vmtenancy.devices import sysfs
from vmtenancy.devices.facts import mode_of, status_of
from vmtenancy.devices.nvml_facts import address_of
from vmtenancy.devices.nvml_process import Reading

Facts = dict[str, Any]
T0, T1, T2 = (f"2026-01-02T03:0{minute}:05Z" for minute in range(3))
A, B = "0000:17:00.0", "0000:ca:00.0"
SYSTEM = {"driverVersion": "570.86.15", "nvmlVersion": "12.570.86.15", "cudaVersion": 12080}


def device(address: str, **answers: Any) -> Facts:
    """What NVML answers about a GPU."""
    bus = int(address.split(":")[1], 16)
    pci = {"busId": f"0000{address.upper()}", "numbers": [0, bus, 0], "deviceId": 0x233010DE}
    known = {
        "name": "NVIDIA H100 80GB HBM3",
        "uuid": f"GPU-{bus:04d}",
        "memory": 81559 << 20,
        "architecture": 9,
    }
    return {"pci": pci, **known, **answers}


def answered(*devices: Facts, count: int | None = None) -> Reading:
    return Reading(
        system={**SYSTEM, "count": len(devices) if count is None else count}, devices=list(devices)
    )


def silent(reason: str = "DriverNotLoaded") -> Reading:
    return Reading(trouble=(reason, "it said nothing"))


def tree(**drivers: str) -> dict[str, Facts]:
    """GPUs A and B of the PCI tree with these drivers."""
    return {
        address: {"product": "NVIDIA-H100-80GB-HBM3", "memory": "81559Mi"}
        | ({"driver": driver} if driver else {})
        for address, driver in ((A, drivers.get("a", "nvidia")), (B, drivers.get("b", "nvidia")))
    }


def look(in_tree: dict[str, Facts], reading: Reading, before: Facts | None = None, **more: Any) -> Facts:
    status = status_of(in_tree, reading, before or {}, more.pop("xids", {}), **{"now": T0, **more})
    GpuNodeStatus.model_validate(status)
    return status


def gpu(status: Facts, address: str) -> Facts:
    (found,) = (one for one in status["gpus"] if one["pciAddress"] == address)
    return found


def reasons(status: Facts, address: str) -> list[str]:
    return [one["reason"] for one in gpu(status, address).get("reasons", ())]


BOTH = (device(A), device(B))


def test_at_rest_nothing_changes() -> None:
    first = look(tree(), answered(*BOTH))
    assert look(tree(), answered(*BOTH), first, now=T1) == first
    gone = look(tree(), silent(), first, now=T1)
    assert look(tree(), silent(), gone, now=T2) == gone


def test_bound_to_vfio_keeps_what_nvml_said() -> None:
    before = look(
        tree(), answered(device(A, migMode=[1, 1], mig={"profiles": [], "instances": []}), device(B))
    )
    assert gpu(before, A)["mig"]["enabled"]
    after = look(tree(a="vfio-pci"), answered(device(B)), before, now=T1)
    assert gpu(after, A) == {
        "pciAddress": A,
        "uuid": "GPU-0023",
        "product": "NVIDIA-H100-80GB-HBM3",
        "memory": "81559Mi",
        "architecture": "Hopper",
        "driver": "vfio-pci",
        "nvmlSeenAt": T1,
        "healthy": True,
        "peers": [{"pciAddress": B, "ancestor": "", "nvLinks": 0}],
    }
    later = look(tree(a="vfio-pci"), answered(device(B)), after, now=T2)
    assert gpu(later, A)["nvmlSeenAt"] == T1, "the age is of the facts, not of the look"
    back = look(tree(), answered(*BOTH), later, now=T2)
    assert "nvmlSeenAt" not in gpu(back, A)


@pytest.mark.parametrize(
    ("a", "b", "mode"),
    [
        ("vfio-pci", "vfio-pci", "vm-passthrough"),
        ("nvgrace_gpu_vfio_pci", "vfio-pci", "vm-passthrough"),
        ("nvidia", "nvidia", "container"),
        ("nvidia", "vfio-pci", ""),
        ("nvidia", "", "container"),
        ("", "", ""),
        ("nouveau", "nouveau", ""),
    ],
)
def test_mode(a: str, b: str, mode: str) -> None:
    known = [one for one, driver in zip(BOTH, (a, b), strict=True) if driver == "nvidia"]
    status = look(tree(a=a, b=b), answered(*known))
    assert status["mode"] == mode
    assert [one["healthy"] for one in status["gpus"]] == [driver not in ("", "nouveau") for driver in (a, b)]


def test_vgpu_mode_without_nvml(tmp_path: Path) -> None:
    for make in (pci_tree.sriov_vgpu, pci_tree.mdev_vgpu):
        found = sysfs.gpus_of(sysfs.read(make(tmp_path / make.__name__).root))
        status = look(found, silent("LibraryNotFound"))
        assert status["mode"] == "vm-vgpu"
        assert status["gpus"][0]["healthy"], "a library that is not mounted is not the GPU's fault"


def test_fallen_off_the_bus() -> None:
    before = look(tree(), answered(*BOTH))
    lost = look(tree(), answered(device(B), {"handle": {"error": 15}}, count=2), before, now=T1)
    assert reasons(lost, A) == ["GpuLost"]
    assert reasons(lost, B) == []
    back = look(tree(), answered(*BOTH), lost, now=T2)
    assert gpu(back, A)["healthy"]


@pytest.mark.parametrize(("code", "reason"), [(999, "NvmlSilent"), (6, "NvmlSilent"), (15, "GpuLost")])
def test_gone_between_two_calls(code: int, reason: str) -> None:
    """The handle was still given, and then nothing is answered any more."""
    before = look(tree(), answered(*BOTH))
    error = {"error": code}
    gone = answered(device(A, name=error, uuid=error, memory=error, architecture=error), device(B))
    after = look(tree(), gone, before, now=T1)
    assert reasons(after, A) == [reason]
    kept = {name: gpu(before, A)[name] for name in ("uuid", "product", "memory", "architecture")}
    assert gpu(after, A) == {**gpu(after, A), **kept, "nvmlSeenAt": T1}
    assert look(tree(), gone, after, now=T2) == after
    assert look(tree(), answered(*BOTH), after, now=T2) == before


def test_taken_out() -> None:
    before = look(tree(), answered(*BOTH))
    left = {A: tree()[A]}
    after = look(left, answered(device(A)), before)
    assert [one["pciAddress"] for one in after["gpus"]] == [A]
    assert "peers" not in after["gpus"][0]
    assert after["conditions"][0]["status"] == "True"


def test_without_a_tree_silence_takes_nothing_out() -> None:
    before = look({}, answered(*BOTH))
    after = look({}, silent("CallHangs"), before, now=T1)
    assert [one["pciAddress"] for one in after["gpus"]] == [A, B]
    assert reasons(after, A) == reasons(after, B) == ["NvmlSilent"]
    assert after["driverVersion"] == before["driverVersion"]
    assert gpu(after, A)["uuid"] == gpu(before, A)["uuid"]
    fewer = look({}, answered(device(A)), before, now=T1)
    assert [one["pciAddress"] for one in fewer["gpus"]] == [A], "NVML counts one, and tells of it"
    assert after["conditions"] == [
        {
            "type": "NvmlAnswers",
            "status": "False",
            "reason": "CallHangs",
            "message": "it said nothing",
            "lastTransitionTime": T1,
        }
    ]


def test_silence_concerns_only_whom_it_drives() -> None:
    status = look(tree(a="vfio-pci"), silent())
    assert reasons(status, A) == []
    assert reasons(status, B) == ["NvmlSilent"]


@pytest.mark.parametrize(
    ("xid", "marked"), [(79, True), (48, True), (95, True), (31, False), (43, False), (63, False)]
)
def test_xids(xid: int, marked: bool) -> None:
    status = look(tree(), answered(*BOTH), xids={A: xid})
    assert reasons(status, A) == (["XidError"] if marked else [])
    assert reasons(status, B) == []


def test_an_xid_stays_until_boot_or_return() -> None:
    marked = look(tree(), answered(*BOTH), xids={A: 79}, boot_id="one")
    again = look(tree(), answered(*BOTH), marked, boot_id="one")
    assert again == marked
    assert gpu(again, A)["reasons"] == [{"reason": "XidError", "message": "XID 79"}]
    hung = look(tree(), silent("CallHangs"), marked, boot_id="one")
    assert "XidError" in reasons(look(tree(), answered(*BOTH), hung, boot_id="one"), A)
    assert reasons(look(tree(), answered(*BOTH), marked, boot_id="two"), A) == []
    away = look(tree(a=""), answered(device(B)), marked, boot_id="one")
    assert reasons(away, A) == ["NoUsableDriver", "XidError"]
    assert reasons(look(tree(), answered(*BOTH), away, boot_id="one"), A) == []
    lost = look(tree(), answered(device(B), count=2), marked, boot_id="one")
    still = look(tree(), answered(device(B), count=2), lost, boot_id="one")
    assert reasons(lost, A) == reasons(still, A) == ["GpuLost", "XidError"]
    assert reasons(look(tree(), answered(*BOTH), still, boot_id="one"), A) == []
    handed_over = look(tree(a="vfio-pci"), answered(device(B)), marked, boot_id="one")
    assert reasons(handed_over, A) == [], "another driver has reset it"
    forgotten = look(tree(), answered(*BOTH), {}, boot_id="one")
    assert reasons(forgotten, A) == [], "who deletes the GpuNode has marks forgotten"


def test_only_gpus_that_are_listed_are_peers() -> None:
    status = look({}, answered(device(A, ancestors=[["0000:99:00.0", 40], [B, 40]]), device(B)))
    assert [peer["pciAddress"] for peer in gpu(status, A)["peers"]] == [B]


def test_truth_is_no_number() -> None:
    """JSON's `true` is 1 to Python."""
    assert reasons(look({}, answered(device(A, moduleId=True))), A) == ["InvalidFacts"]
    assert reasons(look({}, answered(device(A, moduleId=1))), A) == []


def test_messages_are_text_that_can_be_shown() -> None:
    status = look(tree(), Reading(trouble=("InitializationFailed", "\x1b[2Jgone\u202e")))
    assert status["conditions"][0]["message"] == "?[2Jgone?"


def test_names_by_nvml_count_before_the_table() -> None:
    status = look(tree(), answered(device(A, name="NVIDIA GB200"), device(B)))
    assert gpu(status, A)["product"] == "NVIDIA-GB200"


def test_a_tree_that_does_not_say_which_driver() -> None:
    status = look(tree(a="", b=""), answered(device(A)))
    assert (gpu(status, A)["driver"], gpu(status, A)["healthy"]) == ("nvidia", True)
    assert reasons(status, B) == ["NoUsableDriver"]


def test_levels_from_both_sources(tmp_path: Path) -> None:
    found = sysfs.gpus_of(sysfs.read(pci_tree.passthrough(tmp_path).root))
    status = look(found, silent("LibraryNotFound"))
    levels = {
        (one["pciAddress"], p["pciAddress"]): p["ancestor"] for one in status["gpus"] for p in one["peers"]
    }
    assert levels == {
        ("0000:17:00.0", "0000:19:00.0"): "Single",
        ("0000:17:00.0", "0000:ca:00.0"): "System",
        ("0000:19:00.0", "0000:17:00.0"): "Single",
        ("0000:19:00.0", "0000:ca:00.0"): "System",
        ("0000:ca:00.0", "0000:17:00.0"): "System",
        ("0000:ca:00.0", "0000:19:00.0"): "System",
    }
    told = answered(device(A, ancestors=[["0000:ca:00.0", 40]]))
    known = look(found, told, status)
    assert next(p for p in gpu(known, A)["peers"] if p["pciAddress"] == "0000:ca:00.0")["ancestor"] == "Node"


def test_vgpus_of_the_modes() -> None:
    assert mode_of([{"driver": "nvidia", "virtualization": "HostVgpu"}]) == "vm-vgpu"
    assert mode_of([{"driver": "nvidia", "virtualization": "Passthrough"}]) == "container"


# -- anything may come ------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([-1, 2**31, 2**32 - 1, 2**63, 2**64 - 5, 10**30]),
    st.floats(),
    st.sampled_from(
        ["", "NVIDIA T4", "GPU-1", "0000:17:00.0", "MIG 1g.5gb", "\udcff", "\x00", "x" * 300, "é"]
    ),
    st.text(max_size=6),
)
#: Names of parts of answers.
INSIDE = (
    *(
        "id",
        "name",
        "types",
        "creatable",
        "active",
        "state",
        "clique",
        "cluster",
        "profiles",
        "instances",
        "devices",
    ),
    *("uuid", "instance", "remote", "type", "busId", "numbers", "placements", "most", "start"),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.fixed_dictionaries({"error": st.sampled_from([3, 13, 15, 999, "garbage"])}),
        st.dictionaries(
            st.sampled_from(INSIDE),
            inner,
            max_size=5,
        ),
    ),
    max_leaves=12,
)
NAMES = (
    *("pci", "name", "uuid", "serial", "moduleId", "architecture", "computeCapability", "virtualizationMode"),
    *(
        "migMode",
        "remappedRows",
        "retiredPagesPending",
        "memory",
        "memoryAffinity",
        "fabric",
        "nvLinks",
        "mig",
        "vgpu",
    ),
    "ancestors",
)
#: A true answer to each question, so that junk is also found inside an answer that is right beside it.
TRUE: Facts = device(
    A,
    serial="1",
    moduleId=1,
    computeCapability=[9, 0],
    virtualizationMode=0,
    migMode=[1, 1],
    remappedRows=[0, 0, 0, 0],
    retiredPagesPending=0,
    memoryAffinity=[1, 0],
    fabric={"cluster": "0" * 32, "status": 0, "clique": 0, "state": 3},
    nvLinks=[{"remote": {"busId": B, "numbers": [0, 1, 0], "deviceId": 0}, "type": 0}],
    mig={
        "profiles": [{"id": 19, "name": "MIG 1g.10gb", "most": 7, "placements": [[0, 1]]}],
        "instances": [{"id": 1, "profileId": 19, "start": 0, "size": 1}],
        "devices": [{"instance": 1, "uuid": "MIG-1"}],
    },
    vgpu={"types": [{"id": 1, "name": "A"}], "creatable": [1], "active": [1]},
    ancestors=[[B, 40]],
)


@st.composite
def answers(draw: st.DrawFn) -> Facts:
    """A GPU's answers, some of them junk, or junk somewhere inside."""
    found = dict(TRUE)
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4, unique=True)):
        found[name] = draw(inside(found[name]) if draw(st.booleans()) else JUNK)
    return found


@st.composite
def inside(draw: st.DrawFn, value: Any) -> Any:
    """The same answer with one part of it replaced."""
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        return {**value, key: draw(inside(value[key]))}
    if isinstance(value, list) and value:
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], draw(inside(value[index])), *value[index + 1 :]]
    return draw(JUNK)


def plausible(name: str, answer: Any) -> bool:
    """Whether an answer can be what NVML's is, or that there is none."""
    if answer is None or (isinstance(answer, dict) and answer.get("error") in (3, 13)):
        return True
    if name == "memory":
        return type(answer) is int and 64 << 20 <= answer <= 16 << 40
    return isinstance(answer, str) and answer.isascii() and answer.isprintable() and answer[:1].isalnum()


@settings(max_examples=100)
@given(
    st.lists(answers(), max_size=2),
    st.fixed_dictionaries({}, optional=dict.fromkeys((*SYSTEM, "count"), JUNK)),
    st.booleans(),
)
def test_no_answer_is_a_crash_nor_reaches_placement_unmarked(
    devices: list[Facts], system: Facts, tree_is: bool
) -> None:
    reading = Reading(system=system, devices=devices)
    in_tree = tree() if tree_is else {}
    status = look(in_tree, reading)
    parse(
        {
            "metadata": {"name": "n"},
            "kind": "GpuNode",
            "apiVersion": API_VERSION,
            "spec": {},
            "status": status,
        }
    )
    assert look(in_tree, reading, status, now=T1) == status
    for one in status["gpus"]:
        assert one["healthy"] == ("reasons" not in one)
    for one in devices:
        address = address_of(one["pci"])
        wrong = [name for name in ("name", "uuid", "memory") if not plausible(name, one[name])]
        if address and wrong:
            assert not gpu(status, address)["healthy"], wrong
    addresses = [address_of(one["pci"]) for one in devices]
    if addresses == [A, A]:
        assert not gpu(status, A)["healthy"]
