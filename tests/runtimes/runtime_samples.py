"""Objects that several test modules of the runtimes start from, and the comparison with golden files."""

import base64
import copy
import difflib
from pathlib import Path
from typing import Any

import yaml

from vmtenancy.api.gpuallocation import Grant
from vmtenancy.api.gpuvm import GpuVM
from vmtenancy.api.parsing import parse
from vmtenancy.api.virtualcluster import VirtualCluster
from vmtenancy.render.catalog import Catalog, parse_catalog

TEMPLATES = Path(__file__).parents[2] / "vm-templates"
GOLDEN = Path(__file__).parent / "golden"
UID = "3f1c1d0e-6f0a-4c57-9d5a-0a8b3c9d7e11"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEXAMPLEKEYEXAMPLEKEYEXAMPLEKEYEXAMPLEKEY0 ada"

Object = dict[str, Any]


def catalog() -> Catalog:
    return parse_catalog({path.name: path.read_text() for path in TEMPLATES.glob("*.yaml")})


def example(name: str) -> Object:
    manifest = yaml.safe_load((TEMPLATES / "examples" / f"{name}.yaml").read_text())
    manifest["metadata"]["uid"] = UID
    return manifest  # type: ignore[no-any-return]


def gpuvm(name: str = "trainer", **spec: Any) -> GpuVM:
    """A GpuVM of namespace vision with what is required, and `spec` over it."""
    base = {"gpus": [{"class": "h100", "count": 2}], "cpu": {"cores": 4}, "memory": "16Gi"}
    found = parse(
        {
            "apiVersion": "vmtenancy.io/v1alpha1",
            "kind": "GpuVM",
            "metadata": {"name": name, "namespace": "vision", "uid": UID},
            "spec": {**base, **spec},
        }
    )
    assert isinstance(found, GpuVM)
    return found


def virtual_cluster(name: str = "lab", namespace: str = "llm", **spec: Any) -> VirtualCluster:
    """A VirtualCluster with 2 held GPUs and 8 at most, and `spec` over it."""
    found = parse(
        {
            "apiVersion": "vmtenancy.io/v1alpha1",
            "kind": "VirtualCluster",
            "metadata": {"name": name, "namespace": namespace, "uid": UID},
            "spec": {"gpus": [{"class": "h100", "guaranteed": 2, "max": 8}], **spec},
        }
    )
    assert isinstance(found, VirtualCluster)
    return found


def grant(resource: str = "nvidia.com/GH100_H100_SXM5_80GB", count: int = 2, **fields: Any) -> Grant:
    base = {"class": "h100", "pool": "h100", "mode": "vm-passthrough", "parts": 10080 * count}
    return Grant.model_validate({**base, "resource": resource, "count": count, **fields})


def user_data(secret: Object) -> str:
    return base64.b64decode(secret["data"]["userdata"]).decode()


def assert_golden(name: str, objects: list[Object]) -> None:
    """Compare with `golden/<name>.yaml`, Secrets decoded; where they differ, show how."""
    readable = copy.deepcopy(objects)
    for obj in readable:
        if obj["kind"] == "Secret":
            obj["data"] = {key: base64.b64decode(value).decode() for key, value in obj["data"].items()}
    found = yaml.dump_all(readable, Dumper=_Dumper, sort_keys=False, width=120)
    path = GOLDEN / f"{name}.yaml"
    expected = path.read_text() if path.exists() else ""
    difference = "".join(
        difflib.unified_diff(expected.splitlines(True), found.splitlines(True), str(path), "as rendered now")
    )
    assert not difference, difference


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
