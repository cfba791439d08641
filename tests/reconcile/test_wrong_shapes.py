"""One object that makes no sense stays its owner's trouble: the plan goes on for everybody else."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lab import Lab, fork, gpu_pod, gpu_vm, small_lab, virtual_cluster

from vmtenancy.api.names import ADMITTED_CONDITION, ALLOCATION_ANNOTATION, CLASS_ANNOTATION, GROUP_ANNOTATION
from vmtenancy.reconcile.node_fit import fits_node
from vmtenancy.reconcile.status import MOST_MESSAGE, condition


@functools.cache
def _tainted() -> Lab:
    lab = small_lab()
    node = next(iter(lab.cluster.world.of("Node")))
    tainted = copy.deepcopy(node)
    tainted["metadata"]["name"] = "tainted"
    del tainted["metadata"]["uid"], tainted["metadata"]["resourceVersion"]
    tainted["spec"] = {"taints": [{"key": "maintenance", "effect": "NoSchedule"}]}
    lab.cluster.create(tainted)
    lab.settle()
    return lab


def tainted_lab() -> Lab:
    """With a tainted node, so that tolerations are looked at."""
    return fork(_tainted())


@pytest.fixture
def lab() -> Lab:
    return tainted_lab()


def overlay(**spec: Any) -> dict[str, Any]:
    return {"vm": {"template": {"spec": spec}}}


WRONG = {
    "tolerations that are texts": overlay(tolerations=["x"]),
    "tolerations that are a number": overlay(tolerations=5),
    "a network whose name is a list": overlay(networks=[{"name": [1], "pod": {}}]),
    "more memory than there is": {"memory": "1e30"},
    "keys in cloud-init that are mappings": {
        "sshKeys": [{"publicKey": "ssh-ed25519 AAAA a@b"}],
        **overlay(
            volumes=[
                {
                    "name": "cloudinit",
                    "cloudInitNoCloud": {"userData": "#cloud-config\nssh_authorized_keys: [{a: b}]"},
                }
            ]
        ),
    },
}


@pytest.mark.parametrize("name", WRONG)
def test_a_machine_with_wrong_shapes_stops_nobody(lab: Lab, name: str) -> None:
    lab.apply(gpu_vm("wrong", **WRONG[name]))
    lab.apply(gpu_vm("right"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "right")["phase"] == "Running"
    assert lab.reason("GpuVM", "vision", "wrong", "Admitted") in ("CannotRender", "Invalid", "NoCapacity")


@pytest.mark.parametrize(
    ("values", "of", "reason"),
    [
        ({"controlPlane": {"proxy": {"extraSANs": 5}}}, "Ready", "CannotRender"),
        ({"sync": 5}, "Admitted", "Invalid"),
    ],
)
def test_a_virtual_cluster_with_wrong_shapes_stops_nobody(
    lab: Lab, values: dict[str, Any], of: str, reason: str
) -> None:
    lab.apply(virtual_cluster("wrong", 0, values=values))
    lab.apply(gpu_vm("right"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "right")["phase"] == "Running"
    assert lab.reason("VirtualCluster", "llm", "wrong", of) == reason


@pytest.mark.parametrize(
    ("label", "operator", "value", "fits"),
    [
        ("5", "Gt", "4", True),
        ("5", "Gt", "5", False),
        ("-5", "Lt", "+4", True),
        ("9223372036854775807", "Gt", "9223372036854775806", True),
        ("9223372036854775808", "Gt", "4", False),
        ("5", "Lt", "9" * 5000, False),
        ("5", "Gt", "\u00b2", False),
        ("5", "Gt", "\u0664", False),
        ("5", "Gt", " 4", False),
        ("", "Lt", "4", False),
    ],
)
def test_numbers_in_a_node_affinity_are_those_of_go(
    label: str, operator: str, value: str, fits: bool
) -> None:
    pod = gpu_pod("p")
    expression = {"key": "size", "operator": operator, "values": [value]}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    pod["spec"]["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    assert fits_node(pod, {"metadata": {"name": "n", "labels": {"size": label}}, "spec": {}}) is fits


_TEXTS = st.one_of(
    st.sampled_from(
        [
            "",
            "/",
            "a/b/c",
            "x" * 5000,
            "1" * 5000,
            "²",
            "-",
            "+5",
            " 5",
            "5",
            "-5",
            "9223372036854775808",
            "machines",
        ]
    ),
    st.text(max_size=8),
)
_EXPRESSIONS = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["kubernetes.io/hostname", "metadata.name", "size"]),
        "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]),
        "values": st.lists(_TEXTS, min_size=1, max_size=2),
    }
)
_TERMS = st.fixed_dictionaries(
    {}, optional={name: st.lists(_EXPRESSIONS, max_size=2) for name in ("matchExpressions", "matchFields")}
)
_QUANTITIES = st.sampled_from(["0", "1n", "1e3", "250m", "1k", "9223372036854775807", "9Ei", "9E"])
_WISHES = st.fixed_dictionaries(
    {},
    optional={
        "nodeSelector": st.dictionaries(st.sampled_from(["size", "zone"]), _TEXTS, max_size=1),
        "tolerations": st.lists(
            st.fixed_dictionaries(
                {}, optional={"key": _TEXTS, "operator": st.just("Exists"), "value": _TEXTS}
            ),
            max_size=2,
        ),
        "affinity": st.fixed_dictionaries(
            {
                "nodeAffinity": st.fixed_dictionaries(
                    {
                        "requiredDuringSchedulingIgnoredDuringExecution": st.fixed_dictionaries(
                            {"nodeSelectorTerms": st.lists(_TERMS, min_size=1, max_size=2)}
                        )
                    }
                )
            }
        ),
    },
)
_MARKS = st.dictionaries(
    st.sampled_from([GROUP_ANNOTATION, CLASS_ANNOTATION, ALLOCATION_ANNOTATION]), _TEXTS, max_size=3
)


@given(
    wishes=_WISHES, marks=_MARKS, requests=st.dictionaries(st.sampled_from(["cpu", "memory"]), _QUANTITIES)
)
@example(wishes={}, marks={GROUP_ANNOTATION: "a/b/c"}, requests={})
@example(wishes={}, marks={GROUP_ANNOTATION: "x" * 5000}, requests={})
@settings(max_examples=60)
def test_whatever_a_pod_says_stops_nobody(
    wishes: dict[str, Any], marks: dict[str, str], requests: dict[str, str]
) -> None:
    lab = tainted_lab()
    for node in lab.cluster.world.of("Node"):
        lab.cluster.replace({**node, "metadata": {**node["metadata"], "labels": {"size": "3"}}})
    odd = gpu_pod("odd", 1, namespace="llm", **wishes)
    odd["metadata"]["annotations"] = marks
    for container in odd["spec"]["containers"] * 2:
        container["resources"]["requests"] = {**container["resources"].get("limits", {}), **requests}
    odd["spec"]["containers"].append({**odd["spec"]["containers"][0], "name": "second"})
    lab.apply(odd, gpu_pod("right", namespace="llm"), gpu_vm("right"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "right")["phase"] == "Running"
    assert lab.get("Pod", "llm", "right")["spec"]["nodeName"]
    told = condition(lab.get("Pod", "llm", "odd"), ADMITTED_CONDITION) or {"message": ""}
    assert len(told["message"]) <= MOST_MESSAGE


def test_numbers_beyond_all_nodes_stop_nobody(lab: Lab) -> None:
    huge = gpu_pod("huge", 0, nodeName="tainted")
    huge["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "10P", "nvidia.com/gpu": "3G"}}
    lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}, huge)
    lab.apply(gpu_vm("right"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "right")["phase"] == "Running"


def test_a_pod_of_too_many_kinds_is_told_so_and_stops_nobody(lab: Lab) -> None:
    many = gpu_pod("many", 0, namespace="llm")
    many["spec"]["containers"][0]["resources"] = {
        "limits": {f"nvidia.com/mig-{i}g": "1" for i in range(1, 10)}
    }
    lab.apply(many, gpu_vm("right"))
    lab.settle()
    assert lab.status("GpuVM", "vision", "right")["phase"] == "Running"
    assert lab.reason("Pod", "llm", "many", "vmtenancy.io/Admitted") == "NotDeliverable"


def test_a_foreign_object_with_our_label_does_not_keep_a_cluster(lab: Lab) -> None:
    lab.apply(virtual_cluster("lab", 1))
    lab.settle()
    uid = lab.get("VirtualCluster", "llm", "lab")["metadata"]["uid"]
    decoy = gpu_pod("decoy", 0, namespace="vision")
    decoy["metadata"] |= {
        "labels": {"vmtenancy.io/owner-uid": uid},
        "ownerReferences": [{"apiVersion": "v1", "kind": "VirtualCluster", "name": "lab", "uid": uid}],
        "finalizers": ["example/keep"],
    }
    lab.apply(decoy)
    lab.delete("VirtualCluster", "llm", "lab")
    lab.settle()
    assert lab.find("VirtualCluster", "llm", "lab") is None
    assert not lab.live_grants()
