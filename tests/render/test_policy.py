"""What templates and overlays may not hold."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtenancy.api.gpuvm import OWNED_VM_PATHS
from vmtenancy.errors import Code
from vmtenancy.render.policy import check_vm_spec


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def paths(spec: dict[str, Any]) -> list[str]:
    return [problem.path for problem in check_vm_spec(spec, "spec.vm", Code.OWNED_PATH)]


@pytest.mark.parametrize("path", [owned.path for owned in OWNED_VM_PATHS])
@pytest.mark.parametrize("value", [True, None, "x", {}, []])
def test_every_owned_path_is_refused_once_whatever_it_holds(path: str, value: Any) -> None:
    assert paths(nested(path, value)) == [f"spec.vm.{path}"]


@pytest.mark.parametrize(
    ("path", "value", "at"),
    [
        ("instancetype", {"name": "big"}, ""),
        ("apiVersion", "v1", ""),
        ("template.kind", "Pod", ""),
        ("template.metadata.name", "other", ""),
        ("template.metadata.labels", {"vmtenancy.io/owner-uid": "1"}, "[vmtenancy.io/owner-uid]"),
        (
            "template.metadata.labels",
            {"app.kubernetes.io/managed-by": "me"},
            "[app.kubernetes.io/managed-by]",
        ),
        ("template.metadata.annotations", {"vmtenancy.io/class": "x"}, "[vmtenancy.io/class]"),
        ("template.spec.domain.resources.limits", {"nvidia.com/gpu": 1}, "[nvidia.com/gpu]"),
        ("template.spec.domain.resources.requests", {"amd.com/gpu": 1}, "[amd.com/gpu]"),
        ("template.spec.domain.devices.hostDevices", [{"deviceName": "nvidia.com/X"}], "[0].deviceName"),
        ("template", "x", ""),
        ("template.spec", [], ""),
        ("template.spec.domain.devices", None, ""),
        ("template.spec.volumes", {}, ""),
        ("template.spec.domain.devices.disks", ["root"], ""),
        ("dataVolumeTemplates", "x", ""),
    ],
)
def test_other_ways_in_are_refused(path: str, value: Any, at: str) -> None:
    assert paths(nested(path, value)) == [f"spec.vm.{path}{at}"]


def test_what_is_allowed() -> None:
    vmi = {
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "domain": {
            "resources": {"requests": {"memory": "1Gi"}},
            "devices": {
                "hostDevices": [{"name": "nic", "deviceName": "example.com/nic"}, {"claimName": "c"}]
            },
        },
    }
    labels = {"labels": {"team": "a"}, "annotations": {"kubevirt.io/x": "y"}}
    assert (
        paths({"template": {"metadata": labels, "spec": vmi}, "dataVolumeTemplates": [], "preference": {}})
        == []
    )


json_value: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["template", "spec", "domain", "devices", "gpus", "metadata", "labels", "x"]),
            inner,
            max_size=4,
        )
    ),
)


@given(st.dictionaries(st.sampled_from(["template", "running", "x"]), json_value, max_size=3))
def test_any_shape_is_judged_without_an_exception(spec: dict[str, Any]) -> None:
    for problem in check_vm_spec(spec, "spec.vm", Code.OWNED_PATH):
        assert problem.expected
