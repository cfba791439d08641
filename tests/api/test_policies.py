"""The admission policies of `deploy/manifests/` on the real API server."""

from __future__ import annotations

import copy
import re
import time
from pathlib import Path
from typing import get_args

import pytest
import yaml
from callers import Caller

from vmtenancy.api import names
from vmtenancy.api.common import Text
from vmtenancy.api.lease import Instant, is_instant

MANIFESTS = Path(__file__).parents[2] / "deploy" / "manifests"
DEADLINE_S = 20.0
GATES = [{"name": names.GATE}]
OBJECTS = [obj for path in sorted(MANIFESTS.glob("*.yaml")) for obj in yaml.safe_load_all(path.read_text())]
MERGE = "application/merge-patch+json"
GROUP = f"/apis/{names.GROUP}/{names.VERSION}"


def pod(name="train", resource="nvidia.com/gpu", **spec):
    """A pod that asks for one GPU."""
    container = {"name": "main", "image": "registry.example/train:1"}
    if resource:
        container["resources"] = {"limits": {resource: "1"}, "requests": {resource: "1"}}
    spec = {"automountServiceAccountToken": False, "containers": [container]} | spec
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def namespace(name, **labels):
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def eventually(probe, what):
    end = time.monotonic() + DEADLINE_S
    while not probe():
        assert time.monotonic() < end, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.05)


def denied(answer, policy):
    return answer.code == 403 and f"ValidatingAdmissionPolicy '{policy}'" in answer.message


@pytest.fixture
def controller(crds):
    """The controller's service account."""
    return Caller(crds, names.CONTROLLER_USER, "system:serviceaccounts", "system:authenticated")


@pytest.fixture
def operator(crds, admin):
    """A cluster administrator by role: not a member of system:masters, for whom no role would be asked."""
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "operator"}],
    }
    admin("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding)
    return Caller(crds, "operator", "system:authenticated")


@pytest.fixture
def installed(crds, admin, controller, operator):
    """Everything of `deploy/manifests/`, each policy in force, and a tenant's namespace `vision`."""
    crds.kubectl("apply", "--server-side", "-f", str(MANIFESTS))
    dry = "?dryRun=All"
    ledger = {"apiVersion": names.API_VERSION, "kind": "GpuLedger", "metadata": {"name": "x"}, "spec": {}}
    node = ledger | {"kind": "GpuNode", "status": {"mode": "container"}}
    outsider = Caller(crds, "outsider", "system:masters")

    def labelled():
        answer = controller(
            "POST", "/api/v1/namespaces", namespace("vision", **{names.TENANT_LABEL: "vision"})
        )
        return answer.code in (201, 409)

    def enforced():
        pods = "/api/v1/namespaces/vision/pods" + dry
        return (
            admin("POST", pods, pod(resource="amd.com/gpu")).body.get("spec", {}).get("schedulingGates")
            == GATES
            and denied(
                admin("POST", "/api/v1/namespaces" + dry, namespace("x", **{names.TENANT_LABEL: "x"})),
                "namespace-labels.vmtenancy.io",
            )
            and denied(outsider("POST", f"{GROUP}/gpuledgers{dry}", ledger), "ledger.vmtenancy.io")
        )

    eventually(labelled, "the controller may make namespaces")
    eventually(
        lambda: admin("GET", "/api/v1/namespaces/vision/serviceaccounts/default").code == 200, "an account"
    )
    eventually(enforced, "policies in force")
    # What puts the gate back and what guards observations have no refusal to probe on a cluster without objects.
    admin("POST", f"{GROUP}/gpunodes", node)
    seen = {"status": {"mode": "vm-vgpu"}}
    observe = f"{GROUP}/gpunodes/x/status{dry}"
    eventually(
        lambda: denied(operator("PATCH", observe, seen, MERGE), "observations.vmtenancy.io"),
        "observations in force",
    )
    canary = admin("POST", "/api/v1/namespaces/vision/pods", pod("canary")).body["metadata"]["name"]
    path = f"/api/v1/namespaces/vision/pods/{canary}{dry}"
    lift = {"spec": {"schedulingGates": None}}
    eventually(
        lambda: "schedulingGates" in admin("PATCH", path, lift, MERGE).body["spec"], "keep-gate in force"
    )
    yield admin
    # Clean-up is an administrator's work, which the policies would refuse.
    crds.kubectl("delete", "--ignore-not-found", "-f", str(MANIFESTS / "10-gate.yaml"))
    crds.kubectl("delete", "--ignore-not-found", "-f", str(MANIFESTS / "20-ownership.yaml"))
    eventually(lambda: admin("POST", f"{GROUP}/gpuledgers{dry}", ledger).code == 201, "policies gone")
    eventually(
        lambda: (
            admin("POST", "/api/v1/namespaces" + dry, namespace("x", **{names.TENANT_LABEL: "x"})).code == 201
        ),
        "policies gone",
    )


def agent_on(cluster, admin, node):
    """The agent's service account with a token that is bound to a node, as the kubelet gives its pod there."""
    admin("POST", "/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    bound = [
        f"--namespace={names.AGENT_NAMESPACE}",
        "--bound-object-kind=Node",
        f"--bound-object-name={node}",
    ]
    token = cluster.kubectl("create", "token", names.AGENT_ACCOUNT, *bound)
    return Caller(cluster, node, token=token.strip())


# -- pure: the manifests say what vmtenancy.api.names says ---------------------------------------------------


def expressions():
    def walk(node):
        if isinstance(node, dict):
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)
        elif isinstance(node, str):
            yield node

    return [text for obj in OBJECTS if "Admission" in obj["kind"] for text in walk(obj)]


def test_gpu_resources_are_those_of_the_code():
    patterns = {found for text in expressions() for found in re.findall(r"matches\('([^']*)'\)", text)}
    (instant,) = (text.pattern for text in get_args(Instant) if isinstance(text, Text))
    (pattern,) = patterns - {instant}
    assert instant in patterns
    for prefix in names.GPU_RESOURCE_PREFIXES:
        assert re.match(pattern, f"{prefix}gpu")
    assert pattern.count("|") + 1 == len(names.GPU_RESOURCE_PREFIXES)
    for other in (
        "cpu",
        "hugepages-2Mi",
        "devices.kubevirt.io/kvm",
        "example.com/nvidia.com/gpu",
        "nvidiaXcom/gpu",
    ):
        assert not re.match(pattern, other)


def test_names_are_those_of_the_code():
    text = "\n".join(expressions())
    accounts = set(re.findall(r"system:serviceaccount:[-:a-z]+", text))
    assert accounts == {names.CONTROLLER_USER, names.AGENT_USER}
    assert set(re.findall(r"name: '([^']+)'", text)) == {names.GATE}
    selectors = [
        obj["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
        for obj in OBJECTS
        if "namespaceSelector" in obj["spec" if "spec" in obj else "metadata"].get("matchConstraints", {})
    ]
    assert selectors == [[{"key": names.TENANT_LABEL, "operator": "Exists"}]] * 3


def test_rights_are_of_service_accounts_of_ours_alone():
    """A right that is bound to a user or a group is anyone's who can call himself that."""
    subjects = [subject for obj in OBJECTS for subject in obj.get("subjects", ())]
    assert {(one["kind"], one.get("namespace"), one["name"]) for one in subjects} == {
        ("ServiceAccount", names.SYSTEM_NAMESPACE, names.CONTROLLER_ACCOUNT),
        ("ServiceAccount", names.AGENT_NAMESPACE, names.AGENT_ACCOUNT),
    }
    groups = {
        rule.strip() for text in expressions() for rule in re.findall(r"[^|&]*userInfo\.groups[^|&]*", text)
    }
    assert groups == {"'system:masters' in request.userInfo.groups"}


def test_every_policy_is_bound_and_denies():
    policies = {(o["kind"], o["metadata"]["name"]) for o in OBJECTS if o["kind"].endswith("AdmissionPolicy")}
    bindings = [o for o in OBJECTS if o["kind"].endswith("AdmissionPolicyBinding")]
    assert {(o["kind"].removesuffix("Binding"), o["spec"]["policyName"]) for o in bindings} == policies
    assert all(
        o["spec"].get("failurePolicy") == "Fail" for o in OBJECTS if o["kind"].endswith("AdmissionPolicy")
    )
    validating = [o for o in bindings if o["kind"].startswith("Validating")]
    assert all(o["spec"]["validationActions"] == ["Deny"] for o in validating)


# -- on the real API server ----------------------------------------------------------------------------------


@pytest.mark.cluster
def test_policies(installed, controller, operator, crds, subtests):
    """One control plane with everything installed; each part is a subtest."""
    admin = installed
    pods = "/api/v1/namespaces/vision/pods"
    dry = "?dryRun=All"
    gpus = {"limits": {"nvidia.com/gpu": "1"}}
    init = {"name": "warm-up", "image": "registry.example/train:1", "resources": gpus}
    claim = {"resourceClaims": [{"name": "gpu", "resourceClaimName": "theirs"}]}
    gated = {
        "device plugin": pod(),
        "MIG": pod(resource="nvidia.com/mig-1g.10gb"),
        "AMD": pod(resource="amd.com/gpu"),
        "Intel": pod(resource="gpu.intel.com/i915"),
        "DRA extended resource": pod(resource="deviceclass.resource.kubernetes.io/gpu.nvidia.com"),
        "init container": pod(resource=None, initContainers=[init]),
        "resource claim": pod(resource=None, **claim),
        "another gate beside": pod(schedulingGates=[{"name": "example.com/other"}]),
    }
    for what, obj in gated.items():
        with subtests.test(f"gated: {what}"):
            answer = admin("POST", pods + dry, obj)
            assert answer.code == 201, answer.message
            assert GATES[0] in answer.body["spec"]["schedulingGates"]
    with subtests.test("not gated: no GPUs"):
        assert "schedulingGates" not in admin("POST", pods + dry, pod(resource=None)).body["spec"]
    with subtests.test("not gated: no tenant's namespace"):
        answer = admin("POST", f"/api/v1/namespaces/default/pods{dry}", pod())
        assert "schedulingGates" not in answer.body["spec"]
    with subtests.test("node name refused"):
        answer = admin("POST", pods + dry, pod(nodeName="node-7"))
        assert answer.code == 422
        assert "spec.nodeName: Forbidden: cannot be set until all schedulingGates" in answer.message
        assert admin("POST", pods + dry, pod(resource=None, nodeName="node-7")).code == 201

    with subtests.test("only the controller lifts the gate"):
        created = admin("POST", pods, pod()).body
        path = f"{pods}/train"
        for lift in ({"spec": {"schedulingGates": None}}, {"spec": {"schedulingGates": []}}):
            after = admin("PATCH", path, lift, MERGE).body
            assert after["spec"]["schedulingGates"] == GATES
            assert after["metadata"]["resourceVersion"] == created["metadata"]["resourceVersion"], "no change"
        replaced = copy.deepcopy(created)
        del replaced["spec"]["schedulingGates"]
        replaced["metadata"]["labels"] = {"team": "a"}
        answer = admin("PUT", path, replaced)
        assert answer.body["spec"]["schedulingGates"] == GATES
        assert answer.body["metadata"]["labels"] == {"team": "a"}, "the rest of an update is kept"
        lifted = controller("PATCH", path, {"spec": {"schedulingGates": None}}, MERGE)
        assert lifted.code == 200, lifted.message
        assert "schedulingGates" not in lifted.body["spec"]
        assert (
            "schedulingGates"
            not in admin("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, MERGE).body["spec"]
        )

    label_policy = "namespace-labels.vmtenancy.io"
    with subtests.test("namespace label: set, changed or removed by nobody else"):
        answer = admin("POST", f"/api/v1/namespaces{dry}", namespace("mine", **{names.TENANT_LABEL: "me"}))
        assert denied(answer, label_policy)
        assert f"metadata.labels: found {names.TENANT_LABEL}=me;" in answer.message
        assert admin("POST", "/api/v1/namespaces", namespace("plain", team="a")).code == 201
        for name, value in (("plain", "me"), ("vision", "other"), ("vision", None), ("plain", "")):
            patch = {"metadata": {"labels": {names.TENANT_LABEL: value}}}
            for part in ("", "/status"):
                answer = admin("PATCH", f"/api/v1/namespaces/{name}{part}", patch, MERGE)
                assert denied(answer, label_policy), (name, value, part, answer.body)
        whole = admin("GET", "/api/v1/namespaces/plain").body
        whole["metadata"]["labels"][names.TENANT_LABEL] = "me"
        assert denied(admin("PUT", "/api/v1/namespaces/plain/finalize", whole), label_policy)
    with subtests.test("namespace label: other labels are free"):
        for name in ("plain", "vision"):
            patch = {"metadata": {"labels": {"team": "b"}}}
            assert admin("PATCH", f"/api/v1/namespaces/{name}", patch, MERGE).code == 200
    with subtests.test("namespace label: the controller's"):
        for value in ("me", "other", None):
            patch = {"metadata": {"labels": {names.TENANT_LABEL: value}}}
            answer = controller("PATCH", "/api/v1/namespaces/plain", patch, MERGE)
            assert answer.code == 200, answer.message
            assert answer.body["metadata"]["labels"].get(names.TENANT_LABEL) == value

    tables = yaml.safe_load((Path(__file__).parent / "fields" / "gpuallocation.yaml").read_text())
    allocation = tables[0]["base"]
    ledger = {"apiVersion": names.API_VERSION, "kind": "GpuLedger", "metadata": {"name": "main"}, "spec": {}}
    for obj, plural, status in ((allocation, "gpuallocations", True), (ledger, "gpuledgers", False)):
        name = obj["metadata"]["name"]
        with subtests.test(f"{plural}: written by the controller alone"):
            for who in (admin, operator):
                answer = who("POST", f"{GROUP}/{plural}", obj)
                assert denied(answer, "ledger.vmtenancy.io"), answer.body
                assert f"{plural}/{name}" in answer.message
            assert controller("POST", f"{GROUP}/{plural}", obj).code == 201
            label = {"metadata": {"labels": {"a": "b"}}}
            assert denied(admin("PATCH", f"{GROUP}/{plural}/{name}", label, MERGE), "ledger.vmtenancy.io")
            assert denied(admin("DELETE", f"{GROUP}/{plural}/{name}"), "ledger.vmtenancy.io")
            assert controller("PATCH", f"{GROUP}/{plural}/{name}", label, MERGE).code == 200
            if status:
                live = {"status": {"sequence": 1, "podUIDs": ["a"]}}
                assert denied(
                    admin("PATCH", f"{GROUP}/{plural}/{name}/status", live, MERGE), "ledger.vmtenancy.io"
                )
                assert controller("PATCH", f"{GROUP}/{plural}/{name}/status", live, MERGE).code == 200
    with subtests.test("a grant never changes"):
        answer = controller(
            "PATCH", f"{GROUP}/gpuallocations/pod-8d3a1c52", {"spec": {"node": "node-2"}}, MERGE
        )
        assert answer.code == 422
        assert "a grant is replaced by another, never edited" in answer.message
    with subtests.test("the controller may delete what it wrote"):
        for path in ("gpuallocations/pod-8d3a1c52", "gpuledgers/main"):
            assert controller("DELETE", f"{GROUP}/{path}").code == 200

    with subtests.test("observations: written by the agent alone"):
        agent = agent_on(crds, admin, "x")
        seen = {"status": {"mode": "vm-vgpu"}}
        answer = operator("PATCH", f"{GROUP}/gpunodes/x/status", seen, MERGE)
        assert denied(answer, "observations.vmtenancy.io"), answer.body
        assert agent("PATCH", f"{GROUP}/gpunodes/x/status", seen, MERGE).code == 200
        cordon = {"spec": {"cordonedDevices": ["0000:17:00.0"]}}
        assert operator("PATCH", f"{GROUP}/gpunodes/x", cordon, MERGE).code == 200
        assert agent("PATCH", f"{GROUP}/gpunodes/x", cordon, MERGE).code == 403

    with subtests.test("observations: an agent writes about its own node alone"):
        agent = agent_on(crds, admin, "node-1")
        for name, code in (("node-1", 201), ("node-2", 403)):
            observed = {
                "apiVersion": names.API_VERSION,
                "kind": "GpuNode",
                "metadata": {"name": name},
                "spec": {},
            }
            answer = agent("POST", f"{GROUP}/gpunodes", observed)
            assert answer.code == code, answer.body
        assert denied(answer, "observations.vmtenancy.io")
        assert "found node-2 written by the agent on node node-1" in answer.message
        assert agent("PATCH", f"{GROUP}/gpunodes/node-1/status", seen, MERGE).code == 200
        answer = agent("PATCH", f"{GROUP}/gpunodes/x/status", seen, MERGE)
        assert denied(answer, "observations.vmtenancy.io"), answer.body
        anywhere = Caller(crds, names.AGENT_USER, "system:serviceaccounts", "system:authenticated")
        answer = anywhere("PATCH", f"{GROUP}/gpunodes/node-1/status", seen, MERGE)
        assert denied(answer, "observations.vmtenancy.io"), "a token that names no node"
        assert "an unknown node" in answer.message

    with subtests.test("a volume elsewhere is cloned only with the right to"):
        vm = yaml.safe_load((Path(__file__).parent / "fields" / "gpuvm.yaml").read_text())[0]["base"]
        vm["metadata"]["namespace"] = "vision"
        vms = f"{GROUP}/namespaces/vision/gpuvms"
        member = Caller(crds, "tina", "system:authenticated")
        crds.kubectl("create", "rolebinding", "tina", "-nvision", "--clusterrole=admin", "--user=tina")
        eventually(lambda: member("GET", vms).code == 200, "the authorizer knows tina")
        eventually(lambda: denied(member("POST", vms + dry, vm), "clones.vmtenancy.io"), "refused")
        answer = member("POST", vms + dry, vm)
        assert "spec.disks: found images/ubuntu;" in answer.message
        assert admin("POST", vms, vm).code == 201
        label = {"metadata": {"labels": {"team": "a"}}}
        assert member("PATCH", f"{vms}/trainer", label, MERGE).code == 200, "what others set may stay"
        more = {
            "spec": {
                "disks": [
                    {"name": "b", "image": {"pvc": {"namespace": "images", "name": "b"}}, "size": "1Gi"}
                ]
            }
        }
        assert denied(member("PATCH", f"{vms}/trainer", more, MERGE), "clones.vmtenancy.io")
        own = {
            "spec": {
                "disks": [
                    {"name": "b", "image": {"pvc": {"namespace": "vision", "name": "b"}}, "size": "1Gi"}
                ]
            }
        }
        assert member("PATCH", f"{vms}/trainer", own, MERGE).code == 200

    with subtests.test("marks of what runs: the controller's own, and that of who may adopt"):
        granted = {"metadata": {"annotations": {names.ALLOCATION_ANNOTATION: "grant"}}}
        adopted = {"metadata": {"annotations": {names.ADOPT_ANNOTATION: "true"}}}
        for patch in (granted, adopted):
            eventually(
                lambda patch=patch: denied(
                    member("PATCH", f"{pods}/train{dry}", patch, MERGE), "marks.vmtenancy.io"
                ),
                "refused",
            )
            forged = pod("forged", resource=None)
            forged["metadata"] |= patch["metadata"]
            assert denied(member("POST", pods + dry, forged), "marks.vmtenancy.io")
            assert denied(member("PATCH", f"{vms}/trainer{dry}", patch, MERGE), "marks.vmtenancy.io")
        for path in (f"{pods}/train", f"{pods}/train/status"):
            answer = operator("PATCH", path + dry, granted, MERGE)
            assert denied(answer, "marks.vmtenancy.io"), "no administrator either"
            assert answer.message.endswith("it is set by the controller of vmtenancy alone")
        everywhere = f"/api/v1/namespaces/default/pods{dry}"
        assert denied(admin("POST", everywhere, forged), "marks.vmtenancy.io") is False
        forged["metadata"] |= granted["metadata"]
        assert denied(admin("POST", everywhere, forged), "marks.vmtenancy.io"), "before it is a tenant's too"
        assert controller("PATCH", f"{pods}/train", granted, MERGE).code == 200
        assert operator("PATCH", f"{pods}/train", adopted, MERGE).code == 200
        assert operator("PATCH", f"{vms}/trainer{dry}", adopted, MERGE).code == 200
        assert member("PATCH", f"{pods}/train", label, MERGE).code == 200, "what others set may stay"
        other = {"metadata": {"annotations": {names.ALLOCATION_ANNOTATION: "another"}}}
        assert denied(member("PATCH", f"{pods}/train", other, MERGE), "marks.vmtenancy.io")
        gone = {"metadata": {"annotations": {names.ADOPT_ANNOTATION: None}}}
        assert member("PATCH", f"{pods}/train", gone, MERGE).code == 200

    with subtests.test("when work was saved last: a time, by whoever may write the object"):
        for text, is_a_time in (
            ("2026-01-02T03:04:05Z", True),
            ("2026-02-30T03:04:05Z", False),
            ("2026-1-2T3:4:5Z", False),
            ("2026-01-02T03:04:05+01:00", False),
            ("now", False),
            ("", False),
        ):
            saved = {"metadata": {"annotations": {names.CHECKPOINTED_ANNOTATION: text}}}
            for path in (f"{pods}/train", f"{vms}/trainer"):
                answer = member("PATCH", path + dry, saved, MERGE)
                assert answer.code == (200 if is_a_time else 422), (path, text)
            assert is_instant(text) is is_a_time
        assert "found , expected a time in UTC in whole seconds" in answer.message

    with subtests.test("what is not gated is refused where the gate is missing"):
        binding = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings/gate.vmtenancy.io"
        assert admin("DELETE", binding).code == 200
        eventually(lambda: denied(admin("POST", pods + dry, pod()), "gated-pods.vmtenancy.io"), "refused")
        message = admin("POST", pods + dry, pod(nodeName="node-7")).message
        assert "spec.schedulingGates" in message
        assert names.GATE in message
        assert admin("POST", pods + dry, pod("other", resource=None)).code == 201
