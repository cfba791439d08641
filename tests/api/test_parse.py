import copy

import pytest

from vmtenancy import resources
from vmtenancy.api import GpuClass, GpuVM, ObjectMeta, parse
from vmtenancy.api.gpuclass import PARTS_PER_GPU, share_parts
from vmtenancy.api.names import API_VERSION
from vmtenancy.errors import Code, VmtError

VM = {
    "apiVersion": "vmtenancy.io/v1alpha1",
    "kind": "GpuVM",
    "metadata": {"name": "trainer", "namespace": "vision", "managedFields": [{"manager": "kubectl"}]},
    "spec": {
        "gpus": [{"class": "h100"}],
        "cpu": {"cores": 4},
        "memory": "16Gi",
        "disks": [{"name": "root", "image": {"containerDisk": "registry.example/ubuntu:24.04"}}],
    },
}


def problems(obj):
    with pytest.raises(VmtError) as caught:
        parse(obj)
    return {problem.path: problem for problem in caught.value.problems}


def changed(**spec):
    obj = copy.deepcopy(VM)
    obj["spec"].update(spec)
    return obj


def test_defaults():
    vm = parse(VM)
    assert isinstance(vm, GpuVM)
    assert vm.spec.gpus[0].count == 1
    assert vm.spec.template.name == "default"
    assert [network.name for network in vm.spec.networks] == ["default"]
    assert (vm.spec.run_strategy, vm.spec.when_stopped, vm.spec.priority) == ("Always", "Release", 0)
    assert vm.status.phase is None


def test_round_trip():
    vm = parse(VM)
    assert parse(vm.to_dict()) == vm


def test_every_problem_is_reported_at_once():
    found = problems(
        changed(
            gpus=[{"class": "h100", "count": 0}, {"clas": "h100"}],
            memory="-1Gi",
            runStrategy="Sometimes",
            vm={"running": True, "template": {"spec": {"affinity": {}}}},
            colour="red",
        )
    )
    assert {path: problem.code for path, problem in found.items()} == {
        "spec.gpus[0].count": Code.INVALID_FIELD,
        "spec.gpus[1].class": Code.INVALID_FIELD,
        "spec.gpus[1].clas": Code.UNKNOWN_FIELD,
        "spec.memory": Code.INVALID_FIELD,
        "spec.runStrategy": Code.INVALID_FIELD,
        "spec.vm.running": Code.OWNED_PATH,
        "spec.vm.template.spec.affinity": Code.OWNED_PATH,
        "spec.colour": Code.UNKNOWN_FIELD,
    }
    assert found["spec.memory"].found == '"-1Gi"'
    assert "greater than 0" in found["spec.memory"].expected
    assert found["spec.gpus[1].clas"].expected == "one of class, count, alternatives, minCount"


@pytest.mark.parametrize(("value", "shown"), [("4", '"4"'), (True, "true"), (2.5, "2.5"), ([4], "[4]")])
def test_types_are_never_coerced(value, shown):
    assert problems(changed(cpu={"cores": value}))["spec.cpu.cores"].found == shown


def test_a_quantity_may_be_an_integer():
    assert parse(changed(memory=1 << 30)).spec.memory.bytes == 1 << 30


@pytest.mark.parametrize(
    ("obj", "path"),
    [
        ({}, "apiVersion"),
        ({"apiVersion": "vmtenancy.io/v1alpha1"}, "kind"),
        ({"apiVersion": "vmtenancy.io/v1alpha1", "kind": "Pod"}, "kind"),
        ({"apiVersion": "v1", "kind": "GpuVM"}, "apiVersion"),
        ({"apiVersion": "vmtenancy.io/v1alpha1", "kind": ["GpuVM"]}, "kind"),
    ],
)
def test_what_is_not_ours(obj, path):
    assert list(problems(obj)) == [path]


@pytest.mark.parametrize("name", ["", "Trainer", "a.b", "-a", "a" * 64, "a\n"])
def test_names(name):
    assert list(problems(VM | {"metadata": {"name": name}})) == ["metadata.name"]


def test_spec_that_is_no_object():
    assert problems(VM | {"spec": "all"})["spec"].found == '"all"'


def test_long_values_are_cut():
    assert len(problems(changed(runStrategy="x" * 1000))["spec.runStrategy"].found) <= 80


@pytest.mark.parametrize(
    ("share", "parts"),
    [("1", 10080), ("1/4", 2520), ("3/7", 4320), ("48/48", 10080), ("1/11", None), ("3/2", None)],
)
def test_share(share, parts):
    assert share_parts(share) == parts


def test_parts_of_a_class():
    spec = {"pool": "h100", "share": "1/4", "delivery": {"vgpu": {"resource": "nvidia.com/NVIDIA_H100-20C"}}}
    vgpu = parse(VM | {"kind": "GpuClass", "spec": spec})
    assert isinstance(vgpu, GpuClass)
    assert vgpu.spec.parts * 4 == PARTS_PER_GPU


def test_models_from_python():
    meta = ObjectMeta(name="a", labels={"x": "y"})
    assert meta.to_dict() == {"name": "a", "labels": {"x": "y"}}


def test_every_example_is_valid() -> None:
    files = sorted(resources.folder("quickstart").parent.glob("*/*.yaml"))
    ours = [obj for file in files for obj in resources.objects(file) if obj["apiVersion"] == API_VERSION]
    assert {obj["kind"] for obj in ours} >= {"GpuVM", "VirtualCluster", "GpuGroup", "Tenant", "Cohort"}
    for obj in ours:
        parse(obj)
