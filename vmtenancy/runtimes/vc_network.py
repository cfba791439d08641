"""NetworkPolicies of a virtual cluster's host namespace: nothing but what a vCluster needs."""

from __future__ import annotations

from typing import Any, Final

from vmtenancy.api.names import TENANT_LABEL

#: On every pod that comes from inside the virtual cluster, with the release as its value.
MANAGED_BY_VCLUSTER: Final = "vcluster.loft.sh/managed-by"
_ANY: Final[dict[str, Any]] = {}
_API: Final = {"port": 8443, "protocol": "TCP"}
_HTTPS: Final = ({"port": 443, "protocol": "TCP"}, {"port": 6443, "protocol": "TCP"}, _API)
_DNS: Final = ({"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"})
#: Addresses that are not the internet: private, shared, loopback and link-local ones (a cloud's metadata among them).
_INSIDE_V4: Final = (
    *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
)
_INSIDE_V6: Final = ("::1/128", "fc00::/7", "fe80::/10")
#: Where a node-local DNS cache listens.
_NODE_DNS: Final = "169.254.20.10/32"


def network_policy_specs(release: str, tenant: str) -> dict[str, dict[str, Any]]:
    """Return the specs by name.

    `deny`: no traffic for any pod. `control-plane`: reached by pods of the namespace on all ports, and on its API
    port by the tenant's own namespaces; reaches DNS, pods of the namespace, and any API server, whose address is not
    known here. `workloads`: reached by pods of the namespace; reach these, DNS and the internet, but no private
    address.
    """
    here = {"podSelector": _ANY}
    tenants = {"namespaceSelector": {"matchLabels": {TENANT_LABEL: tenant}}}
    system = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}
    dns = {"ports": list(_DNS), "to": [system, {"ipBlock": {"cidr": _NODE_DNS}}]}
    internet = [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(_INSIDE_V4)}},
        {"ipBlock": {"cidr": "::/0", "except": list(_INSIDE_V6)}},
    ]
    both = ["Ingress", "Egress"]
    return {
        "vmtenancy-deny": {"podSelector": _ANY, "policyTypes": both},
        "vmtenancy-control-plane": {
            "podSelector": {
                "matchLabels": {"release": release},
                # A tenant chooses the labels of its pods, but the syncer adds this one to each.
                "matchExpressions": [{"key": MANAGED_BY_VCLUSTER, "operator": "DoesNotExist"}],
            },
            "policyTypes": both,
            "ingress": [{"from": [here]}, {"from": [tenants], "ports": [_API]}],
            "egress": [{"to": [here]}, dns, {"ports": list(_HTTPS)}],
        },
        "vmtenancy-workloads": {
            "podSelector": {"matchLabels": {MANAGED_BY_VCLUSTER: release}},
            "policyTypes": both,
            "ingress": [{"from": [here]}],
            "egress": [{"to": [here]}, dns, {"to": internet}],
        },
    }
