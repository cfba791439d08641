"""GpuVM and grant to VirtualMachine."""

import base64
import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from runtime_samples import KEY, UID, Object, assert_golden, catalog, example, gpuvm, grant, user_data

from vmtenancy.api import names
from vmtenancy.api.gpuvm import OWNED_VM_PATHS, GpuVM
from vmtenancy.api.parsing import parse
from vmtenancy.api.quantity import Quantity, to_bytes
from vmtenancy.errors import Code, VmtError
from vmtenancy.render.catalog import parse_catalog
from vmtenancy.runtimes import kubevirt
from vmtenancy.runtimes.base import Runtime
from vmtenancy.runtimes.kubevirt import VmInputs, VmObservation, canonical, data_volume_name

CATALOG = catalog()
INPUTS = VmInputs("vision", CATALOG)
RUNTIME: Runtime[GpuVM, VmInputs, VmObservation] = kubevirt


def machine(vm: GpuVM, *grants: Any, inputs: VmInputs = INPUTS) -> Object:
    return kubevirt.objects(vm, grants or (grant(),), inputs)[-1]


def vmi_of(obj: Object) -> Any:
    return obj["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("name", "resource"),
    [
        ("default", "nvidia.com/GH100_H100_SXM5_80GB"),
        ("ubuntu-cuda", "nvidia.com/GH100_H100_SXM5_80GB"),
        ("windows", "nvidia.com/NVIDIA_L40S-24Q"),
    ],
)
def test_each_template_with_its_example(name: str, resource: str) -> None:
    vm = parse(example(name))
    assert isinstance(vm, GpuVM)
    count = sum(request.count for request in vm.spec.gpus)
    found = kubevirt.objects(vm, [grant(resource, count)], VmInputs(vm.metadata.namespace, CATALOG))
    assert_golden(name, found)


def test_gpus_are_those_of_the_grant_in_order() -> None:
    vm = gpuvm(gpus=[{"class": "h100", "count": 2}, {"class": "l40s", "count": 1}])
    grants = (grant("nvidia.com/H100", 2), grant("nvidia.com/L40S", 1, **{"class": "l40s"}))
    gpus = vmi_of(machine(vm, *grants))["domain"]["devices"]["gpus"]
    assert gpus == [
        {"name": "gpu0", "deviceName": "nvidia.com/H100"},
        {"name": "gpu1", "deviceName": "nvidia.com/H100"},
        {"name": "gpu2", "deviceName": "nvidia.com/L40S"},
    ]


@pytest.mark.parametrize(
    ("wanted", "granted", "found"),
    [
        ("Always", True, "Always"),
        ("RerunOnFailure", True, "RerunOnFailure"),
        ("Halted", True, "Halted"),
        ("Always", False, "Halted"),
        ("RerunOnFailure", False, "Halted"),
    ],
)
def test_it_runs_only_with_a_grant(wanted: str, granted: bool, found: str) -> None:
    obj = kubevirt.objects(gpuvm(runStrategy=wanted), [grant()] if granted else [], INPUTS)[-1]
    assert obj["spec"]["runStrategy"] == found
    assert ("gpus" in vmi_of(obj)["domain"]["devices"]) is granted


def test_labels_and_owner_on_all_that_is_made() -> None:
    overlay = {"template": {"metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}}}}
    secret, obj = kubevirt.objects(gpuvm(sshKeys=[{"publicKey": KEY}], vm=overlay), [grant()], INPUTS)
    labels = {
        names.MANAGED_LABEL: names.MANAGED_BY,
        names.TENANT_LABEL: "vision",
        names.GPUVM_LABEL: "trainer",
        names.OWNER_UID_LABEL: UID,
    }
    for made in (secret, obj):
        assert made["metadata"]["labels"] == labels
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)
    assert obj["spec"]["template"]["metadata"] == {
        "labels": {"team": "a", **labels},
        "annotations": {"note": "b"},
    }


def test_the_later_goes_over_the_earlier() -> None:
    text = """
description: d
spec: |
  template:
    spec:
      domain:
        cpu: {cores: 99, dedicatedCpuPlacement: true}
        devices:
          disks: [{name: root, cache: none}]
      terminationGracePeriodSeconds: 1
      hostname: template
"""
    overlay = {
        "template": {
            "spec": {
                "hostname": "overlay",
                "terminationGracePeriodSeconds": None,
                "domain": {
                    "cpu": {"threads": 2},
                    "devices": {
                        "disks": [
                            {"name": "root", "serial": "abc"},
                            {"name": "iso", "cdrom": {"bus": "sata"}},
                        ],
                        "interfaces": [{"name": "default", "bridge": {}}],
                    },
                },
                "volumes": [{"name": "iso", "emptyDisk": {"capacity": "1Gi"}}],
            }
        }
    }
    vm = gpuvm(
        template={"name": "own"},
        disks=[{"name": "root", "image": {"containerDisk": "registry.example/a"}}],
        vm=overlay,
    )
    found = vmi_of(machine(vm, inputs=VmInputs("vision", parse_catalog({"own.yaml": text}))))
    assert found["hostname"] == "overlay"
    assert "terminationGracePeriodSeconds" not in found
    assert found["domain"]["cpu"] == {"cores": 4, "dedicatedCpuPlacement": True, "threads": 2}
    assert found["domain"]["devices"]["disks"] == [
        {"name": "root", "cache": "none", "bootOrder": 1, "serial": "abc", "disk": {"bus": "virtio"}},
        {"name": "iso", "cdrom": {"bus": "sata"}},
    ]
    assert found["domain"]["devices"]["interfaces"] == [{"name": "default", "bridge": {}}]
    assert [volume["name"] for volume in found["volumes"]] == ["root", "iso"]


def test_networks() -> None:
    vm = gpuvm(networks=[{"name": "net", "multus": "ib/net-1"}, {"name": "pods"}])
    found = vmi_of(machine(vm))
    assert found["networks"] == [
        {"name": "net", "multus": {"networkName": "ib/net-1"}},
        {"name": "pods", "pod": {}},
    ]
    assert found["domain"]["devices"]["interfaces"] == [
        {"name": "net", "bridge": {}},
        {"name": "pods", "masquerade": {}},
    ]
    alone = vmi_of(machine(gpuvm(networks=[])))
    assert alone["domain"]["devices"]["autoattachPodInterface"] is False
    assert "networks" not in alone
    assert "interfaces" not in alone["domain"]["devices"]


@pytest.mark.parametrize(
    ("image", "source"),
    [
        (
            {"http": {"url": "https://images.example/a.qcow2"}},
            {"http": {"url": "https://images.example/a.qcow2"}},
        ),
        (
            {"registry": {"image": "registry.example/a:1"}},
            {"registry": {"url": "docker://registry.example/a:1"}},
        ),
        ({"pvc": {"name": "gold"}}, {"pvc": {"namespace": "vision", "name": "gold"}}),
        ({"pvc": {"namespace": "images", "name": "gold"}}, {"pvc": {"namespace": "images", "name": "gold"}}),
        ({"blank": {}}, {"blank": {}}),
    ],
)
def test_disks_from_data_volumes(image: Any, source: Any) -> None:
    disk = {"name": "root", "image": image, "size": "2048Mi", "storageClass": "fast"}
    obj = machine(gpuvm(disks=[disk]))
    (volume,) = obj["spec"]["dataVolumeTemplates"]
    assert volume["metadata"] == {"name": "trainer-root"}
    assert volume["spec"]["source"] == source
    assert volume["spec"]["storage"] == {
        "resources": {"requests": {"storage": "2Gi"}},
        "storageClassName": "fast",
    }
    assert vmi_of(obj)["volumes"] == [{"name": "root", "dataVolume": {"name": "trainer-root"}}]


label = st.from_regex(r"\A[ab](-?[ab]){0,3}\Z")


@given(st.lists(st.tuples(label, label), unique=True, min_size=2, max_size=40))
def test_no_two_disks_share_a_data_volume(pairs: list[tuple[str, str]]) -> None:
    found = {data_volume_name(vm, disk) for vm, disk in pairs}
    assert len(found) == len(pairs)


@pytest.mark.parametrize(
    ("given_", "found"),
    [
        ("1024Mi", "1Gi"),
        ("1.5Gi", "1536Mi"),
        ("128Gi", "128Gi"),
        ("1000M", "1G"),
        ("1.5G", "1500M"),
        ("1e9", "1G"),
        ("1024", "1024"),
        ("3Ki", "3Ki"),
        ("2048Ki", "2Mi"),
    ],
)
def test_quantities_are_written_as_kubernetes_does(given_: str, found: str) -> None:
    assert canonical(Quantity(given_)) == found


@given(st.integers(1, 4096), st.sampled_from(["Ki", "Mi", "Gi", "Ti", "k", "M", "G", "T", ""]))
def test_a_canonical_quantity_is_the_same_amount_and_stays(number: int, unit: str) -> None:
    once = canonical(Quantity(f"{number}{unit}"))
    assert to_bytes(once) == to_bytes(f"{number}{unit}")
    assert canonical(Quantity(once)) == once


def test_keys_and_host_name_go_into_a_secret_and_the_cloud_config_is_kept() -> None:
    vm = gpuvm(
        template={"name": "ubuntu-cuda", "parameters": {"driver": "550", "openModules": "false"}},
        sshKeys=[{"publicKey": KEY}, {"secretRef": {"name": "keys"}}],
    )
    assert kubevirt.key_secret_names(vm) == ["keys"]
    other = "ssh-rsa AAAAB3NzaC1yc2E bob"
    secret, obj = kubevirt.objects(vm, [grant()], VmInputs("vision", CATALOG, [other, KEY]))
    text = user_data(secret)
    assert text.startswith("#cloud-config\n")
    config = yaml.safe_load(text)
    assert config["packages"] == ["linux-headers-generic", "nvidia-driver-550-server"]
    assert config["hostname"] == "trainer"
    assert config["ssh_authorized_keys"] == [KEY, other]
    (volume,) = vmi_of(obj)["volumes"]
    assert volume == {
        "name": "cloudinit",
        "cloudInitNoCloud": {"secretRef": {"name": secret["metadata"]["name"]}},
    }


def test_keys_alone_bring_their_own_volume() -> None:
    secret, obj = kubevirt.objects(gpuvm(sshKeys=[{"publicKey": KEY}]), [grant()], INPUTS)
    assert yaml.safe_load(user_data(secret)) == {"hostname": "trainer", "ssh_authorized_keys": [KEY]}
    assert vmi_of(obj)["domain"]["devices"]["disks"] == [{"name": "cloudinit", "disk": {"bus": "virtio"}}]


def test_without_keys_there_is_no_secret() -> None:
    (obj,) = kubevirt.objects(gpuvm(template={"name": "ubuntu-cuda"}), [grant()], INPUTS)
    (volume,) = vmi_of(obj)["volumes"]
    assert "nvidia-driver-580-server-open" in volume["cloudInitNoCloud"]["userData"]


@pytest.mark.parametrize(
    "source",
    [
        {"cloudInitNoCloud": {"userData": "#!/bin/sh\ntrue"}},
        {"cloudInitNoCloud": {"secretRef": {"name": "mine"}}},
        {"cloudInitConfigDrive": {"userDataBase64": "YQ=="}},
        {"cloudInitNoCloud": {"userData": "#cloud-config\n- a"}},
        {"cloudInitNoCloud": {"userData": "#cloud-config\nssh_authorized_keys: none"}},
        {"cloudInitNoCloud": {"userData": "#cloud-config\na: [\n"}},
        {"cloudInitNoCloud": {"userData": 3}},
        {"cloudInitNoCloud": "x"},
    ],
)
def test_keys_that_can_not_be_added_are_an_error(source: Any) -> None:
    overlay = {"template": {"spec": {"volumes": [{"name": "init", **source}]}}}
    with pytest.raises(VmtError, match=r"VMT-A001: spec\.sshKeys: the keys can not be added"):
        kubevirt.objects(gpuvm(sshKeys=[{"publicKey": KEY}], vm=overlay), [grant()], INPUTS)


def test_public_keys_of_secrets() -> None:
    def secret(**values: str) -> Object:
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        return {"kind": "Secret", "metadata": {"name": "keys"}, "data": data}

    other = "ecdsa-sha2-nistp256 AAAA bob"
    assert kubevirt.public_keys([secret(b=f"# mine\n{KEY}\n\n", a=other), secret(c=KEY)]) == [other, KEY]
    assert kubevirt.public_keys([]) == []
    for bad in ("", "-----BEGIN OPENSSH PRIVATE KEY-----", f'command="x" {KEY}', "ssh-rsa"):
        with pytest.raises(VmtError, match="Secret keys has no public key"):
            kubevirt.public_keys([secret(a=bad)])


def test_a_template_sees_how_many_gpus_were_granted_and_else_how_many_are_asked_for() -> None:
    text = "description: d\nspec: |\n  template: {spec: {hostname: has-{{ vm.gpus }}}}\n"
    inputs = VmInputs("vision", parse_catalog({"own.yaml": text}))
    gpus = [{"class": "h100", "count": 4, "minCount": 1, "alternatives": ["a100"]}]
    vm = gpuvm(template={"name": "own"}, gpus=gpus)
    fewer = grant("nvidia.com/A100", 3, **{"class": "a100", "pool": "a100"})
    assert vmi_of(machine(vm, fewer, inputs=inputs))["hostname"] == "has-3"
    assert [
        gpu["deviceName"] for gpu in vmi_of(machine(vm, fewer, inputs=inputs))["domain"]["devices"]["gpus"]
    ] == ["nvidia.com/A100"] * 3
    assert vmi_of(kubevirt.objects(vm, (), inputs)[-1])["hostname"] == "has-4"


def test_a_template_that_sets_what_is_owned_is_refused() -> None:
    text = "description: d\nspec: |\n  running: true\n  template: {spec: {nodeSelector: {a: b}}, kind: x}\n"
    with pytest.raises(VmtError) as caught:
        machine(gpuvm(template={"name": "own"}), inputs=VmInputs("vision", parse_catalog({"own.yaml": text})))
    assert {problem.code for problem in caught.value.problems} == {Code.OUTPUT_REFUSED}
    assert [problem.path.removeprefix("template own: spec.") for problem in caught.value.problems] == [
        "running",
        "template.spec.nodeSelector",
        "template.kind",
    ]


def test_an_unknown_template_and_an_overlay_with_gpus() -> None:
    with pytest.raises(VmtError, match=r"VMT-A004: spec\.template.name: .*default, ubuntu-cuda, windows"):
        machine(gpuvm(template={"name": "none"}))
    overlay = {
        "template": {"spec": {"domain": {"devices": {"hostDevices": [{"deviceName": "nvidia.com/H100"}]}}}}
    }
    with pytest.raises(
        VmtError, match=r"VMT-A003: spec.vm.template.spec.domain.devices.hostDevices\[0\].deviceName"
    ):
        machine(gpuvm(vm=overlay))


vmi_key = st.sampled_from(
    (
        *(
            "template",
            "metadata",
            "labels",
            "spec",
            "domain",
            "devices",
            "disks",
            "interfaces",
            "cpu",
            "hostname",
        ),
        *("volumes", "networks", "pod", "name", "cloudInitNoCloud", "dataVolumeTemplates"),
    )
)
overlays: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.integers(0, 3) | st.sampled_from(["root", "default", "cloudinit", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(vmi_key, inner, max_size=4),
    max_leaves=15,
)


@given(
    st.dictionaries(vmi_key, overlays, max_size=3)
    | st.dictionaries(vmi_key, overlays, max_size=4).map(lambda vmi: {"template": {"spec": vmi}}),
    st.booleans(),
)
def test_any_overlay_gives_owned_paths_of_ours_or_our_error(overlay: Any, keys: bool) -> None:
    before = json.dumps(overlay)
    try:
        vm = gpuvm(
            disks=[{"name": "root", "image": {"containerDisk": "registry.example/a"}}],
            sshKeys=[{"publicKey": KEY}] if keys else [],
            vm=overlay,
        )
        obj = machine(vm)
    except VmtError:
        return
    finally:
        assert json.dumps(overlay) == before
    assert obj["spec"]["runStrategy"] == "Always"
    assert [gpu["name"] for gpu in vmi_of(obj)["domain"]["devices"]["gpus"]] == ["gpu0", "gpu1"]
    assert obj["spec"]["template"]["metadata"]["labels"].items() >= obj["metadata"]["labels"].items()
    ours = ("runStrategy", "template.spec.domain.devices.gpus")
    assert all(path.find(obj["spec"]) is None for path in OWNED_VM_PATHS if path.path not in ours)
    assert kubevirt.objects(vm, (grant(),), INPUTS)[-1] == obj
