"""Real KubeVirt on a control plane without machines: its virt-api and virt-controller, run as processes.

virt-operator is left out; what it would have done is done here: the CRDs, webhooks and APIServices that
KubeVirt's own generators print (pointed at this machine), the certificates, and the KubeVirt object with the
status that the other two read. The node side is played by `VirtHandler`, disk images by `DataImporter`.
"""

import base64
import json
import ssl
import subprocess
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from kubernetes import client, config

from vmtenancy.testing import build
from vmtenancy.testing.cdi import DataImporter
from vmtenancy.testing.cluster import Cluster
from vmtenancy.testing.informer import Object, StandIn
from vmtenancy.testing.pki import LOOPBACK, Authority
from vmtenancy.testing.process import Process, free_port, http_ok
from vmtenancy.testing.virt_handler import VirtHandler
from vmtenancy.testing.waiting import eventually

NAMESPACE = "kubevirt"
PCI_DEVICES = {"nvidia.com/GH100_H100_SXM5_80GB": "10DE:2330"}
MEDIATED_DEVICES = {"nvidia.com/NVIDIA_H100-20C": "NVIDIA H100-20C"}
FEATURE_GATES = ("CPUManager", "HostDevices")
LAUNCHER_IMAGE = "registry.example/kubevirt/virt-launcher:v1.7.0"

_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_PROGRAMS = ("virt-api", "virt-controller", "kubevirt-manifests")
_SERVICE = "virt-api"
_DEADLINE_S = 60.0


class KubeVirt:
    """KubeVirt on ``cluster``: ``with KubeVirt(cluster) as kubevirt``, or ``start()`` and ``stop()``.

    ``pci_devices`` (resource name to ``vendor:device``) and ``mediated_devices`` (resource name to the mdev
    type's name) are the devices that virtual machines may ask for; something else advertises them, as
    NVIDIA's device plugin does. Stopping leaves KubeVirt's objects on the cluster, its webhooks included.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        pci_devices: Mapping[str, str] = PCI_DEVICES,
        mediated_devices: Mapping[str, str] = MEDIATED_DEVICES,
        feature_gates: Sequence[str] = FEATURE_GATES,
    ) -> None:
        self.cluster = cluster
        self._devices = _permitted(pci_devices, mediated_devices)
        self._feature_gates = feature_gates
        self._processes: list[Process] = []
        self._stand_ins: list[StandIn] = []

    def start(self) -> Self:
        """Build what is missing, start everything and wait until virtual machines are validated and run.

        Raises ``BuildError`` or ``ProcessError``; what was started is stopped then.
        """
        try:
            self._start({name: build.resolve(name) for name in _PROGRAMS})
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the programs and the stand-ins. Safe to call twice."""
        for stand_in in self._stand_ins:
            stand_in.stop()
        for process in reversed(self._processes):
            process.stop(grace_s=0)  # virt-api would wait 5 s for load balancers to notice
        self._stand_ins.clear()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def set_feature_gates(self, gates: Sequence[str]) -> None:
        """Change the feature gates. For some of them virt-controller exits; it is started again."""
        self._feature_gates = gates
        self._configure()

    def _start(self, programs: Mapping[str, Path]) -> None:
        authority = Authority(self.cluster.data_dir / "kubevirt", "kubevirt-ca")
        ca = authority.cert.read_text()
        # virt-api is asked by address (webhooks) and by its Service's name (aggregated API).
        pair = authority.issue(
            "virt", "virt", hosts=[*LOOPBACK, self.cluster.host, f"{_SERVICE}.{NAMESPACE}.svc"]
        )
        self._tls = ssl.create_default_context(cafile=str(authority.cert))
        # First, as it computes for 5 s before it looks for anything on the cluster.
        port, process = self._spawn(
            programs["virt-api"],
            "kubevirt-apiserver",
            f"--tls-cert-file={pair.cert}",
            f"--tls-key-file={pair.key}",
            f"--handler-cert-file={pair.cert}",
            f"--handler-key-file={pair.key}",
        )
        printed = subprocess.run([programs["kubevirt-manifests"], NAMESPACE], capture_output=True, check=True)
        objects: list[Object] = json.loads(printed.stdout)["items"]
        crds = [o for o in objects if o["kind"] == "CustomResourceDefinition"]
        for crd in crds:
            self._create_crd(crd)
        names = {crd["metadata"]["name"] for crd in crds}
        eventually("KubeVirt's CRDs are served", lambda: names <= self._served(), _DEADLINE_S)
        self._apply(_namespace(ca))
        self._configure()
        process.wait_ready(
            http_ok(f"https://{self.cluster.host}:{port}/healthz", self._tls), _DEADLINE_S, "healthy"
        )
        host = self.cluster.host
        pointed = [_pointed_at(o, host, port, ca) for o in objects if o not in crds]
        self._apply([_service(host, port), *pointed])
        process.wait_ready(self._validates, _DEADLINE_S, "validating")

        port, process = self._spawn(
            programs["virt-controller"],
            "kubevirt-controller",
            f"--prom-cert-file={pair.cert}",
            f"--prom-key-file={pair.key}",
            f"--launcher-image={LAUNCHER_IMAGE}",
        )
        identity = self._identity("kubevirt-handler")
        handler = config.new_client_from_config(str(identity))  # type: ignore[no-untyped-call]
        self._stand_ins = [VirtHandler(handler), DataImporter(self.cluster.client)]
        for stand_in in self._stand_ins:
            stand_in.start()
        process.wait_ready(lambda: self._leads(port), _DEADLINE_S, "leading")

    def _spawn(self, program: Path, account: str, *options: str) -> tuple[int, Process]:
        port = free_port()
        process = self.cluster.spawn(
            program.name,
            [
                program,
                f"--kubeconfig={self._identity(account)}",
                f"--listen={self.cluster.host}",
                f"--port={port}",
                *options,
            ],
            restart=True,  # as Kubernetes would: virt-controller exits on some changes of its configuration
        )
        self._processes.append(process)
        return port, process

    def _identity(self, account: str) -> Path:
        """A kubeconfig that acts as a service account of KubeVirt: its webhooks let only those through."""
        user = f"system:serviceaccount:{NAMESPACE}:{account}"
        return self.cluster.kubeconfig_for(user, ["system:masters", "system:serviceaccounts"])

    def _configure(self) -> None:
        configuration = {
            "developerConfiguration": {"featureGates": list(self._feature_gates)},
            "permittedHostDevices": self._devices,
        }
        kubevirt: Object = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "KubeVirt",
            "metadata": {"name": "kubevirt", "namespace": NAMESPACE},
        }
        kubevirt["spec"] = {"configuration": configuration}
        self._apply([kubevirt])
        # Without an architecture virt-api has no default machine type to give.
        status = {"phase": "Deployed", "defaultArchitecture": "amd64"}
        self._apply([kubevirt | {"status": status}], "--subresource=status")

    def _create_crd(self, crd: Object) -> None:
        # Not applied: merging 2 MB of schemas server-side takes three times as long as all the rest.
        try:
            self.cluster.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        except client.ApiException as error:
            if error.status != 409:
                raise

    def _apply(self, objects: Iterable[Object], *options: str) -> None:
        manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        options = ("--server-side", "--force-conflicts", "--field-manager=virt-operator", *options)
        self.cluster.kubectl("apply", "--filename=-", *options, stdin=manifest)

    def _served(self) -> set[str]:
        """Every served ``plural.group``."""
        found = self.cluster.request("GET", "/apis", accept=_DISCOVERY)
        return {
            f"{resource['resource']}.{group['metadata']['name']}"
            for group in found["items"]
            for version in group["versions"]
            for resource in version.get("resources", ())
        }

    def _validates(self) -> bool:
        """Whether a VirtualMachine that its schema accepts and virt-api does not is refused."""
        template: Object = {"spec": {"domain": {"devices": {}}}}
        vm = {
            "apiVersion": "kubevirt.io/v1",
            "kind": "VirtualMachine",
            "metadata": {"name": "probe"},
            "spec": {"runStrategy": "Sometimes", "template": template},
        }
        try:
            client.CustomObjectsApi(self.cluster.client).create_namespaced_custom_object(
                "kubevirt.io", "v1", NAMESPACE, "virtualmachines", vm, dry_run="All"
            )
        except client.ApiException as error:
            return "virtualmachine-validator" in str(error.body)
        return False

    def _leads(self, port: int) -> bool:
        try:
            url = f"https://{self.cluster.host}:{port}/leader"
            with urllib.request.urlopen(url, timeout=2, context=self._tls) as answer:
                return bool(json.load(answer)["apiserver"]["leader"] == "true")
        except OSError:
            return False


def _permitted(pci: Mapping[str, str], mediated: Mapping[str, str]) -> Object:
    def device(name: str, selector: str, value: str) -> Object:
        return {"resourceName": name, selector: value, "externalResourceProvider": True}

    return {
        "pciHostDevices": [device(n, "pciVendorSelector", v) for n, v in pci.items()],
        "mediatedDevices": [device(n, "mdevNameSelector", v) for n, v in mediated.items()],
    }


def _namespace(ca: str) -> list[Object]:
    trust = {"name": "kubevirt-ca", "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": trust, "data": {"ca-bundle": ca}},
    ]


def _service(host: str, port: int) -> Object:
    """virt-api's Service: the aggregator goes to the address of an ExternalName itself."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _SERVICE, "namespace": NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": host, "ports": [{"port": port}]},
    }


def _pointed_at(item: Object, host: str, port: int, ca: str) -> Object:
    """The object with every reference to virt-api's Service replaced by its address."""
    bundle = base64.b64encode(ca.encode()).decode()
    for hook in item.get("webhooks", []):
        path = hook["clientConfig"].pop("service")["path"]
        hook["clientConfig"] |= {"url": f"https://{host}:{port}{path}", "caBundle": bundle}
    if item["kind"] == "APIService":
        item["spec"]["service"]["port"] = port
        item["spec"]["caBundle"] = bundle
    return item
