"""The main job as a story: two tenants, virtual machines and a virtual cluster on one fleet.

The same scenes are told by `make demo` and checked by the end-to-end tests, on any `Stage`: a cluster in memory, or
the real programs. Each scene asks for something, waits until it is observed, and says what was decided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vmtenancy.api.names import GPUVM_LABEL
from vmtenancy.reconcile.charges import gpus_text
from vmtenancy.reconcile.status import condition, is_true
from vmtenancy.reconcile.steps import Object, Ref
from vmtenancy.reconcile.world import World, labels_of, ref_of
from vmtenancy.testing.fleet import gpu_node

PASSTHROUGH: Final = "nvidia.com/GH100_H100_SXM5_80GB"
VGPU: Final = "nvidia.com/NVIDIA_H100-20C"
#: How long anything in the story may take on the slowest of the real programs, in seconds.
PATIENCE: Final = 120.0


class StoryError(Exception):
    """Something in the story did not happen; says what was waited for and what was seen instead."""


class Stage(Protocol):
    """Where the story is played. `wait` blocks until `ready(world)` is true, or raises `StoryError`."""

    def describe(self) -> str:
        """One line on what is real here and what is not."""

    def add_nodes(self, nodes: Sequence[Object]) -> None:
        """Have these nodes in the fleet, ready, each with its `GpuNode` as the agent would publish it."""

    def apply(self, obj: Object) -> None:
        """As `kubectl apply`."""

    def delete(self, ref: Ref) -> None:
        """As `kubectl delete --wait=false`."""

    def apply_inside(self, cluster: Ref, obj: Object) -> None:
        """As `kubectl apply` with the kubeconfig that a VirtualCluster hands out."""

    def wait(self, what: str, ready: Callable[[World], bool], timeout: float = PATIENCE) -> World:
        """Wait for something to be observed; returns the world in which it is."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What happened: each line of `asked`, `decided` and `observed` is a sentence for people."""

    title: str
    asked: Sequence[str]
    decided: Sequence[str]
    observed: Sequence[str]
    world: World = field(repr=False)


def quickstart_nodes() -> list[Object]:
    """Five nodes of eight H100s: two for pods, two for passthrough, one for vGPUs."""
    return [
        gpu_node("gpu-1"),
        gpu_node("gpu-2"),
        gpu_node("gpu-3", mode="vm-passthrough", resources={PASSTHROUGH: 8}),
        gpu_node("gpu-4", mode="vm-passthrough", resources={PASSTHROUGH: 8}),
        gpu_node("gpu-5", mode="vm-vgpu", resources={VGPU: 32}),
    ]


def gpu_node_facts(node: Object) -> Object:
    """The `GpuNode` that an agent would publish for a node of `vmtenancy.testing.fleet`: eight GPUs, all healthy."""
    labels = labels_of(node)
    count = int(labels["nvidia.com/gpu.count"])
    gpus = [
        {
            "pciAddress": f"0000:{0x10 + 0x0A * index:02x}:00.0",
            "product": labels["nvidia.com/gpu.product"],
            "memory": f"{labels['nvidia.com/gpu.memory']}Mi",
            "healthy": True,
        }
        for index in range(count)
    ]
    return {
        "apiVersion": "vmtenancy.io/v1alpha1",
        "kind": "GpuNode",
        "metadata": {"name": node["metadata"]["name"]},
        "spec": {},
        "status": {"gpus": gpus, "mode": labels["nvidia.com/gpu.workload.config"]},
    }


def tell(
    stage: Stage,
    manifests: Mapping[str, Sequence[Object]],
    *,
    during: Callable[[str], None] = lambda title: None,
) -> Iterator[Scene]:
    """Play the story. `manifests` are the objects of `examples/quickstart` by file name.

    `during` is called in each scene after the asking and before the waiting: tests kill the controller there. Raises
    `StoryError` where something does not happen.
    """
    trainer, workstation, sweep = (
        Ref("GpuVM", "vision", name) for name in ("trainer", "workstation", "sweep")
    )
    lab = Ref("VirtualCluster", "llm", "lab")
    yield _fleet(stage, manifests, during)
    yield _machine(
        stage, manifests["3-trainer.yaml"], trainer, "A virtual machine with two whole GPUs", during
    )
    yield _machine(
        stage, manifests["4-workstation.yaml"], workstation, "A virtual machine with a vGPU", during
    )
    yield _virtual_cluster(stage, manifests["5-lab.yaml"], lab, during)
    yield _pod_inside(stage, manifests["6-job.yaml"], lab, during)
    yield _over_quota(stage, manifests["7-sweep.yaml"], sweep, during)
    yield _makes_room(stage, trainer, sweep, during)
    yield _clean_up(stage, manifests, (workstation, sweep, lab), during)


# -- scenes -------------------------------------------------------------------------------------------------------


def _fleet(stage: Stage, manifests: Mapping[str, Sequence[Object]], during: Callable[[str], None]) -> Scene:
    title = "One fleet, two tenants"
    nodes = quickstart_nodes()
    stage.add_nodes(nodes)
    objects = [*manifests["1-classes.yaml"], *manifests["2-tenants.yaml"]]
    for obj in objects:
        stage.apply(obj)
    during(title)

    def ready(world: World) -> bool:
        found = [world.find(ref_of(obj)) for obj in objects]
        return all(obj is not None and is_true(obj, "Ready") for obj in found)

    world = stage.wait("pool, classes, cohort and tenants to be Ready", ready)
    pool = world.get("GpuPool", "", "h100") or {}
    namespaces = [f"namespace {ns} belongs to tenant {ns}" for ns in ("vision", "llm")]
    return Scene(
        title,
        [f"5 nodes of 8 H100, in three modes; {', '.join(str(ref_of(obj)) for obj in objects)}"],
        namespaces,
        [f"pool h100 has {pool['status']['allocatable']} GPUs"],
        world,
    )


def _machine(
    stage: Stage, manifest: Sequence[Object], ref: Ref, title: str, during: Callable[[str], None]
) -> Scene:
    for obj in manifest:
        stage.apply(obj)
    during(title)
    world = stage.wait(f"{ref} to run", lambda world: _phase(world, ref) == "Running")
    return Scene(title, [_request(manifest[0])], [_grant_line(world, ref)], _machine_lines(world, ref), world)


def _virtual_cluster(
    stage: Stage, manifest: Sequence[Object], ref: Ref, during: Callable[[str], None]
) -> Scene:
    title = "A virtual cluster with GPUs held for it"
    for obj in manifest:
        stage.apply(obj)
    during(title)
    world = stage.wait(f"{ref} to be Ready", lambda world: _phase(world, ref) == "Ready")
    status = (world.find(ref) or {})["status"]
    return Scene(
        title,
        [_request(manifest[0])],
        [_grant_line(world, ref)],
        [
            f"its control plane runs in namespace {status['namespace']}",
            f"its kubeconfig is in Secret {ref.namespace}/{status['kubeconfigSecret']}",
        ],
        world,
    )


def _pod_inside(
    stage: Stage, manifest: Sequence[Object], cluster: Ref, during: Callable[[str], None]
) -> Scene:
    title = "A pod with two GPUs inside the virtual cluster"
    for obj in manifest:
        stage.apply_inside(cluster, obj)
    during(title)

    def running(world: World) -> bool:
        return any(
            (pod.get("status") or {}).get("phase") == "Running" for pod in _cluster_pods(world, cluster)
        )

    world = stage.wait(f"the pod of {cluster} to run on the host", running)
    pod = _cluster_pods(world, cluster)[0]
    return Scene(
        title,
        [f"Pod {manifest[0]['metadata']['name']} in the virtual cluster asks for 2 x nvidia.com/gpu"],
        [_grant_line(world, ref_of(pod)), "drawn from what the virtual cluster holds: charged once"],
        [f"host pod {ref_of(pod)} runs on {pod['spec']['nodeName']}"],
        world,
    )


def _over_quota(stage: Stage, manifest: Sequence[Object], ref: Ref, during: Callable[[str], None]) -> Scene:
    title = "A request over quota waits, and is told why"
    for obj in manifest:
        stage.apply(obj)
    during(title)

    def waits(world: World) -> bool:
        found = condition(world.find(ref) or {}, "Admitted")
        return found is not None and found["reason"] == "QuotaExceeded"

    world = stage.wait(f"{ref} to be told that it waits", waits)
    found = condition(world.find(ref) or {}, "Admitted") or {}
    return Scene(
        title, [_request(manifest[0])], [f"{found['reason']}: {found['message']}"], ["it waits"], world
    )


def _makes_room(stage: Stage, leaving: Ref, waiting: Ref, during: Callable[[str], None]) -> Scene:
    title = "Room is made, and the waiting machine starts"
    stage.delete(leaving)
    during(title)
    world = stage.wait(
        f"{waiting} to run once {leaving} is gone",
        lambda world: world.find(leaving) is None and _phase(world, waiting) == "Running",
    )
    return Scene(
        title,
        [f"delete {leaving}"],
        [_grant_line(world, waiting)],
        [f"{leaving} is gone", *_machine_lines(world, waiting)],
        world,
    )


def _clean_up(
    stage: Stage,
    manifests: Mapping[str, Sequence[Object]],
    refs: Sequence[Ref],
    during: Callable[[str], None],
) -> Scene:
    title = "Everything is removed, and nothing is left"
    for ref in refs:
        stage.delete(ref)
    during(title)
    stage.wait("machines and virtual cluster to be gone", lambda world: not any(map(world.find, refs)))
    described = [ref_of(obj) for name in ("2-tenants.yaml", "1-classes.yaml") for obj in manifests[name]]
    for ref in described:
        stage.delete(ref)
    world = stage.wait("nothing to be left", lambda world: not leftovers(world))
    lines = ["no allocation, no charge, no child object, no finalizer is left"]
    return Scene(title, [f"delete {', '.join(map(str, (*refs, *described)))}"], [], lines, world)


def leftovers(world: World) -> list[str]:
    """What is still there of the story after its end: objects of ours, children, labels."""
    ours = ("GpuAllocation", "GpuVM", "VirtualCluster", "Tenant", "Cohort", "GpuPool", "GpuClass")
    kinds = (*ours, "VirtualMachine", "VirtualMachineInstance")
    left = [str(ref_of(obj)) for kind in kinds for obj in world.of(kind)]
    left += [str(ref_of(pod)) for pod in world.of("Pod") if GPUVM_LABEL in labels_of(pod)]
    left += [
        f"{ref_of(obj)} (labels {', '.join(labels)})"
        for kind in ("Namespace", "Secret", "ClusterRole", "ClusterRoleBinding")
        for obj in world.of(kind)
        if (labels := sorted(key for key in labels_of(obj) if key.startswith("vmtenancy.io/")))
    ]
    return left


# -- sentences ----------------------------------------------------------------------------------------------------


def _phase(world: World, ref: Ref) -> str:
    status = (world.find(ref) or {}).get("status") or {}
    return str(status.get("phase") or "")


def _request(obj: Object) -> str:
    parts = []
    for gpu in obj["spec"]["gpus"]:
        if "count" in gpu:
            parts.append(f"{gpu['count']} x {gpu['class']}")
        else:
            parts.append(f"{gpu.get('guaranteed', 0)} to {gpu['max']} x {gpu['class']}")
    return f"{ref_of(obj)} asks for {', '.join(parts)}"


def _grant_line(world: World, owner: Ref) -> str:
    for obj in world.of("GpuAllocation"):
        spec: Mapping[str, Any] = obj["spec"]
        if (spec["owner"]["kind"], spec["owner"]["namespace"], spec["owner"]["name"]) == (
            owner.kind,
            owner.namespace,
            owner.name,
        ):
            what = ", ".join(f"{grant['count']} x {grant['class']}" for grant in spec["grants"])
            parts = sum(grant["parts"] for grant in spec["grants"])
            where = f"on node {spec['node']}" if spec.get("node") else "held in the quota, on no node yet"
            return f"{what} {where}; {gpus_text(parts)} GPUs of pool {spec['grants'][0]['pool']} for {spec['tenant']}"
    return f"{owner} has no grant"


def _machine_lines(world: World, ref: Ref) -> list[str]:
    lines = []
    for kind in ("VirtualMachine", "VirtualMachineInstance"):
        obj = world.get(kind, ref.namespace, ref.name)
        if obj is not None:
            status = obj.get("status") or {}
            lines.append(f"{kind} is {status.get('printableStatus') or status.get('phase')}")
    for pod in world.of("Pod"):
        if labels_of(pod).get(GPUVM_LABEL) == ref.name and pod["metadata"]["namespace"] == ref.namespace:
            lines.append(f"launcher pod runs on {pod['spec'].get('nodeName')}")
    return lines


def _cluster_pods(world: World, cluster: Ref) -> list[Object]:
    """Host pods of a virtual cluster that ask for GPUs."""
    home = ((world.find(cluster) or {}).get("status") or {}).get("namespace")
    named = {
        spec["owner"]["name"]
        for spec in (obj["spec"] for obj in world.of("GpuAllocation"))
        if spec["owner"]["kind"] == "Pod" and spec["owner"]["namespace"] == home
    }
    pods = (pod for pod in world.of("Pod") if pod["metadata"]["namespace"] == home)
    return [pod for pod in pods if pod["metadata"]["name"] in named]
