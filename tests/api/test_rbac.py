"""Who may do what, as the API server's own authorizer decides it."""

import time
from pathlib import Path

import pytest

from vmtenancy.api import names

MANIFESTS = Path(__file__).parents[2] / "deploy" / "manifests"
CONTROLLER, AGENT, EDITOR, VIEWER = names.CONTROLLER_USER, names.AGENT_USER, "erin", "vera"
DECISIONS = [
    (CONTROLLER, "create", "vmtenancy.io/gpuallocations", "", True),
    (CONTROLLER, "update", "vmtenancy.io/gpuvms/status", "vision", True),
    (CONTROLLER, "patch", "/pods", "vision", True),
    (CONTROLLER, "patch", "kubevirt.io/virtualmachines", "vision", True),
    (CONTROLLER, "delete", "kubevirt.io/virtualmachineinstances", "vision", True),
    (CONTROLLER, "patch", "kubevirt.io/virtualmachineinstances", "vision", False),
    (CONTROLLER, "update", "vmtenancy.io/gpugroups/status", "vision", True),
    (EDITOR, "create", "vmtenancy.io/gpugroups", "vision", True),
    (EDITOR, "create", "vmtenancy.io/gpureservations", "vision", True),
    (CONTROLLER, "get", "cdi.kubevirt.io/datavolumes", "vision", True),
    (CONTROLLER, "create", "cdi.kubevirt.io/datavolumes/source", "images", False),
    (CONTROLLER, "create", "/namespaces", "", True),
    (CONTROLLER, "update", "coordination.k8s.io/leases", "vmtenancy-system", True),
    (CONTROLLER, "update", "coordination.k8s.io/leases", "kube-system", False),
    (CONTROLLER, "escalate", "rbac.authorization.k8s.io/roles", "vision", False),
    (CONTROLLER, "bind", "rbac.authorization.k8s.io/clusterroles", "", False),
    (CONTROLLER, "update", "/nodes", "", False),
    (CONTROLLER, "update", "admissionregistration.k8s.io/mutatingadmissionpolicies", "", False),
    (CONTROLLER, "create", "/serviceaccounts/token", "vision", False),
    (CONTROLLER, "impersonate", "/users", "", False),
    (AGENT, "update", "vmtenancy.io/gpunodes/status", "", True),
    (AGENT, "update", "vmtenancy.io/gpunodes", "", False),
    (AGENT, "list", "vmtenancy.io/gpunodes", "", False),
    (AGENT, "get", "/nodes", "", False),
    (AGENT, "get", "/secrets", "vmtenancy-system", False),
    (EDITOR, "create", "vmtenancy.io/gpuvms", "vision", True),
    (EDITOR, "delete", "vmtenancy.io/virtualclusters", "vision", True),
    (EDITOR, "update", "vmtenancy.io/gpuvms/status", "vision", False),
    (EDITOR, "create", "vmtenancy.io/gpuvms", "language", False),
    (EDITOR, "update", "vmtenancy.io/tenants", "", False),
    (EDITOR, "get", "vmtenancy.io/gpuallocations", "", False),
    (VIEWER, "get", "vmtenancy.io/gpuvms", "vision", True),
    (VIEWER, "create", "vmtenancy.io/gpuvms", "vision", False),
    (VIEWER, "list", "vmtenancy.io/gpuclasses", "", True),
    (VIEWER, "list", "vmtenancy.io/tenants", "", False),
]


def allowed(admin, user, verb, resource, namespace):
    group, _, rest = resource.partition("/")
    name, _, part = rest.partition("/")
    asked = {"group": group, "resource": name, "subresource": part, "verb": verb, "namespace": namespace}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": asked},
    }
    return admin("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review).body["status"][
        "allowed"
    ]


def bind(cluster, user, role, namespace=None):
    kind = ["rolebinding", "--namespace", namespace] if namespace else ["clusterrolebinding"]
    cluster.kubectl("create", *kind, f"{user}-{role}", f"--clusterrole={role}", f"--user={user}")


@pytest.mark.cluster
def test_decisions(crds, admin):
    crds.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "00-namespace.yaml"))
    crds.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "30-rbac.yaml"))
    crds.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "40-tenant-roles.yaml"))
    crds.kubectl("create", "namespace", "vision")
    bind(crds, EDITOR, "edit", "vision")
    bind(crds, VIEWER, "view", "vision")
    bind(crds, VIEWER, "vmtenancy-catalog-viewer")
    # Roles are aggregated by a controller, and the authorizer learns of them by watching.
    end = time.monotonic() + 20
    while wrong := [decision for decision in DECISIONS if allowed(admin, *decision[:4]) != decision[4]]:
        assert time.monotonic() < end, wrong
        time.sleep(0.1)
