"""A VirtualMachine that runs already becomes a GpuVM's, and nothing of what runs changes.

Rules seen on KubeVirt 1.7: any change below `spec.template.spec`, the name of a GPU too, makes a machine ask for a
restart; labels, owner references and the run strategy do not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmtenancy.api.names import ADOPT_ANNOTATION, API_VERSION
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.render.merge import without_nulls
from vmtenancy.render.policy import check_vm_spec
from vmtenancy.runtimes.base import Object

_STRATEGIES: Final = ("Always", "RerunOnFailure", "Halted")


def gpuvm_for(machine: Object, classes: Mapping[str, str]) -> Object:
    """The manifest of the GpuVM that is `machine`; `classes` by the device name of a GPU.

    GPUs, processor, memory, networks and run strategy go into its fields, everything else into `vm`. Raises `VmtError`
    (ADOPT) for what a GpuVM can not say, every problem at once.
    """
    spec, meta = without_nulls(machine["spec"]), machine["metadata"]
    problems: list[Problem] = []
    template = spec.get("template") or {}
    vmi = template.get("spec") or {}
    domain = vmi.get("domain") or {}
    devices = domain.get("devices") or {}
    gpus = devices.get("gpus") or []
    counts = _counts(gpus, classes, problems)
    strategy = _strategy(spec)
    if strategy not in _STRATEGIES:
        problems.append(
            _problem("spec.runStrategy", "has no equivalent", strategy, f"one of {', '.join(_STRATEGIES)}")
        )
    memory = _memory(domain)
    if memory is None:
        problems.append(
            _problem("spec.template.spec.domain.memory.guest", "is missing", "", "the guest's memory")
        )
    networks = _networks(vmi)
    left = {key: value for key, value in devices.items() if key != "gpus"}
    if networks is None and "autoattachPodInterface" not in left:
        left["autoattachPodInterface"] = None
    rest = {
        **{key: value for key, value in spec.items() if key not in ("running", "runStrategy")},
        "template": {
            **template,
            "spec": {
                **{key: value for key, value in vmi.items() if key != "networks" or networks is None},
                "domain": {
                    **domain,
                    "devices": left,
                    "cpu": {"cores": None, **(domain.get("cpu") or {})},
                    "memory": {"guest": None, **(domain.get("memory") or {})},
                },
            },
        },
    }
    problems += check_vm_spec(rest, "spec", Code.ADOPT)
    if problems:
        raise VmtError.of(problems)
    return {
        "apiVersion": API_VERSION,
        "kind": "GpuVM",
        "metadata": {
            "name": meta["name"],
            "namespace": meta["namespace"],
            "annotations": {ADOPT_ANNOTATION: meta["uid"]},
        },
        "spec": {
            "template": {"name": "bare"},
            "gpus": [{"class": name, "count": count} for name, count in counts.items()],
            "cpu": {"cores": _cores(domain)},
            "memory": memory,
            "networks": networks or [],
            "runStrategy": strategy,
            "vm": rest,
        },
    }


def differences(wanted: Any, found: Any, path: str = "spec") -> Iterator[str]:
    """The paths at which laying `wanted` over `found`, as server-side apply does, would change it.

    Mappings are laid over key by key; anything else is replaced. What is null counts as missing.
    """
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key, value in wanted.items():
            if value is not None:
                yield from differences(value, found.get(key), f"{path}.{key}")
    elif isinstance(wanted, Mapping) and found is None:
        if wanted:
            yield path
    elif without_nulls(wanted) != without_nulls(found):
        yield path


def keep_device_names(wanted: Object, machine: Object) -> Object:
    """`wanted` with the GPUs as the VirtualMachine that exists names them, where they are the same devices."""
    if wanted["kind"] != machine["kind"]:
        return wanted
    here, there = _gpus(machine), _gpus(wanted)
    if here == there or Counter(map(_device, here)) != Counter(map(_device, there)):
        return wanted
    spec = wanted["spec"]
    vmi = spec["template"]["spec"]
    devices = {**vmi["domain"]["devices"], "gpus": here}
    vmi = {**vmi, "domain": {**vmi["domain"], "devices": devices}}
    return {**wanted, "spec": {**spec, "template": {**spec["template"], "spec": vmi}}}


def taken_over(machine: Object, wanted: Object) -> Object:
    """The VirtualMachine with the labels and the owner of `wanted`, which is how it is found from then on.

    `running` gives way to the run strategy that says the same: KubeVirt takes only one of them.
    """
    meta, ours = machine["metadata"], wanted["metadata"]
    spec = {key: value for key, value in machine["spec"].items() if key != "running"}
    return {
        **machine,
        "metadata": {
            **meta,
            "labels": {**(meta.get("labels") or {}), **ours["labels"]},
            "ownerReferences": [*(meta.get("ownerReferences") or ()), *ours["ownerReferences"]],
        },
        "spec": {**spec, "runStrategy": _strategy(machine["spec"])},
    }


def _gpus(machine: Object) -> list[Any]:
    vmi = (machine["spec"].get("template") or {}).get("spec") or {}
    return ((vmi.get("domain") or {}).get("devices") or {}).get("gpus") or []


def _device(gpu: Mapping[str, Any]) -> str:
    return str(gpu.get("deviceName"))


def _problem(path: str, message: str, found: str, expected: str) -> Problem:
    return Problem(Code.ADOPT, path, message, found, expected)


def _counts(gpus: list[Any], classes: Mapping[str, str], problems: list[Problem]) -> dict[str, int]:
    path = "spec.template.spec.domain.devices.gpus"
    if not gpus:
        problems.append(
            _problem(path, "is empty", "", "at least one GPU: a machine without is none for a GpuVM")
        )
    counts: dict[str, int] = {}
    for index, gpu in enumerate(gpus):
        device = gpu.get("deviceName")
        if device in classes:
            counts[classes[device]] = counts.get(classes[device], 0) + 1
        else:
            expected = f"one of {', '.join(sorted(classes)) or 'none'}"
            message = "is no device that a GpuClass of the tenant's pools delivers to machines"
            problems.append(_problem(f"{path}[{index}].deviceName", message, str(device), expected))
    return counts


def _strategy(spec: Mapping[str, Any]) -> str:
    if "runStrategy" in spec:
        return str(spec["runStrategy"])
    return "Always" if spec.get("running") else "Halted"


def _cores(domain: Mapping[str, Any]) -> int:
    cpu = domain.get("cpu") or {}
    return max(1, int(cpu.get("cores") or 1) * int(cpu.get("sockets") or 1) * int(cpu.get("threads") or 1))


def _memory(domain: Mapping[str, Any]) -> str | None:
    resources = domain.get("resources") or {}
    asked = [resources.get(of) or {} for of in ("requests", "limits")]
    amounts = [amount.get("memory") for amount in asked]
    amounts.insert(0, (domain.get("memory") or {}).get("guest"))
    return next((str(amount) for amount in amounts if amount is not None), None)


def _networks(vmi: Mapping[str, Any]) -> list[Object] | None:
    """The machine's networks as a GpuVM says them; None where one of them is of a kind that it has no field for."""
    found = []
    for network in vmi.get("networks") or ():
        match network:
            case {"name": name, "pod": {**more}} if len(network) == 2 and not more:
                found.append({"name": name})
            case {"name": name, "multus": {"networkName": multus, **more}} if len(network) == 2 and not more:
                found.append({"name": name, "multus": multus})
            case _:
                return None
    return found or None
