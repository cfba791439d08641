"""What a fragment of a VirtualMachine's spec may hold, whether a template rendered it or a user wrote it.

KubeVirt's own admission judges the rest. Refused here is what vmtenancy sets itself, and every way to a GPU that is
not a grant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from vmtenancy.api.gpuvm import OWNED_VM_PATHS
from vmtenancy.api.names import GPU_RESOURCE_PREFIXES, GROUP, MANAGED_LABEL
from vmtenancy.errors import Code, Problem

_TOP: Final = ("template", "dataVolumeTemplates", "preference", "updateVolumesStrategy")
_TEMPLATE: Final = ("metadata", "spec")
_METADATA: Final = ("annotations", "labels")
_DEVICES: Final = "template.spec.domain.devices"
#: Where the merge and the runtime go; of other fields KubeVirt's schema judges the types.
_MAPPINGS: Final = (
    *("template", "template.metadata", "template.metadata.annotations", "template.metadata.labels"),
    *("template.spec", "template.spec.domain", "template.spec.domain.resources", _DEVICES),
    *("template.spec.domain.resources.requests", "template.spec.domain.resources.limits"),
    *("template.spec.domain.cpu", "template.spec.domain.memory"),
)
_LISTS: Final = (
    *("dataVolumeTemplates", "template.spec.volumes", "template.spec.networks"),
    *(f"{_DEVICES}.disks", f"{_DEVICES}.interfaces", f"{_DEVICES}.hostDevices"),
)


def check_vm_spec(spec: Mapping[str, Any], path: str, code: Code) -> list[Problem]:
    """Return what is wrong with the fragment; `path` stands before each field's own path."""
    return [
        Problem(code, f"{path}.{field}", message, expected=expected)
        for field, message, expected in _violations(spec)
    ]


def _violations(spec: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield field, message and what is expected."""
    for path in _MAPPINGS:
        present, value = _at(spec, path)
        if present and not isinstance(value, Mapping):
            yield path, "has the wrong type", "a mapping"
    for path in _LISTS:
        present, value = _at(spec, path)
        if present and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            yield path, "has the wrong type", "a list of mappings"
    owned = {path.path: path.instead for path in OWNED_VM_PATHS if _at(spec, path.path)[0]}
    for path, instead in owned.items():
        yield path, "is set by vmtenancy", f"nothing here: {instead}"
    for at, known in (("", _TOP), ("template", _TEMPLATE), ("template.metadata", _METADATA)):
        for key in _mapping(spec, at):
            field = f"{at}.{key}" if at else key
            if key not in known and field not in owned:
                yield field, "is not allowed", "one of " + ", ".join(known)
    for kind in _METADATA:
        for key in _mapping(spec, f"template.metadata.{kind}"):
            if key == MANAGED_LABEL or key.split("/")[0] == GROUP:
                yield f"template.metadata.{kind}[{key}]", "is set by vmtenancy", "another key"
    for amounts in ("template.spec.domain.resources.requests", "template.spec.domain.resources.limits"):
        for resource in _mapping(spec, amounts):
            if resource.startswith(GPU_RESOURCE_PREFIXES):
                yield f"{amounts}[{resource}]", "is a GPU", "nothing here: use spec.gpus"
    _, devices = _at(spec, f"{_DEVICES}.hostDevices")
    for index, device in enumerate(devices if isinstance(devices, list) else ()):
        name = device.get("deviceName") if isinstance(device, Mapping) else None
        if isinstance(name, str) and name.startswith(GPU_RESOURCE_PREFIXES):
            yield f"{_DEVICES}.hostDevices[{index}].deviceName", "is a GPU", "nothing here: use spec.gpus"


def _at(spec: Mapping[str, Any], path: str) -> tuple[bool, Any]:
    """Whether there is something at the path, and what."""
    value: Any = spec
    for key in path.split(".") if path else ():
        if not isinstance(value, Mapping) or key not in value:
            return False, None
        value = value[key]
    return True, value


def _mapping(spec: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    _, value = _at(spec, path)
    return value if isinstance(value, Mapping) else {}
