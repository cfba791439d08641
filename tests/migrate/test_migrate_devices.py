"""No device is ever lost: each of the source's is in a GPU, a host device, left behind by the map, or unresolved."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migrate_samples import INPUTS, ROOT, converted, facts

from vmtenancy.api.names import UNRESOLVED_ANNOTATION
from vmtenancy.api.parsing import validate
from vmtenancy.errors import Code, VmtError
from vmtenancy.migrate import libvirt, openstack, ovf, ovirt, proxmox, vmx
from vmtenancy.migrate.convert import Wishes, convert
from vmtenancy.migrate.devices import DeviceMap, HostFacts, resolve
from vmtenancy.migrate.model import Device
from vmtenancy.migrate.products import suggested_class, vgpu_profile
from vmtenancy.render.document import load_document

GPU, AUDIO, NIC, UNKNOWN = "10de:2230", "10de:1aef", "15b3:1018", "1234:5678"


def answers(**devices: dict[str, Any]) -> DeviceMap:
    return validate(DeviceMap, {"devices": devices})


def address(bus: int, slot: int, function: int) -> str:
    return f"0000:{bus:02x}:{slot:02x}.{function}"


pci = st.builds(
    lambda bus, slot, function, ids, known: Device(
        f"dev{bus}-{slot}-{function}", "pci", address=address(bus, slot, function), ids=ids if known else ""
    ),
    st.integers(0, 3),
    st.integers(0, 1),
    st.integers(0, 7),
    st.sampled_from([GPU, AUDIO, NIC, UNKNOWN]),
    st.booleans(),
)
placeless = st.builds(
    lambda bus, ids, name: Device("somewhere", bus, ids=ids, name=name),
    st.sampled_from(["pci", "mdev", "vgpu", "dynamic", "usb", "scsi", "other"]),
    st.sampled_from([GPU, AUDIO, NIC, ""]),
    st.sampled_from(["", "nvidia-222", "grid_a100-8c", "alias"]),
)
answer = st.sampled_from([{"gpuClass": "g"}, {"hostDevice": "example.com/x"}, {"leave": True}])
key = st.sampled_from(
    [
        GPU,
        AUDIO,
        NIC,
        "grid_a100-8c",
        "A100-8C",
        "alias",
        "0000:00:00.0",
        "01:00",
        "0000:02:01.3",
        "somewhere",
    ]
)


@settings(max_examples=200)
@given(st.lists(pci | placeless, max_size=10), st.dictionaries(key, answer, max_size=4))
def test_every_device_is_in_exactly_one_place(devices: list[Device], given_: dict[str, Any]) -> None:
    found = resolve(devices, answers(**given_), facts())
    cards = [card for _, card in (*found.gpus, *found.hosts)] + found.left + found.unresolved
    placed = [id(device) for card in cards for device in card.devices]
    assert sorted(placed) == sorted(map(id, devices))
    assert found.devices == len(devices)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 1)), max_size=8, unique=True))
def test_hostdevs_of_libvirt_are_counted_whatever_they_are(places: list[tuple[int, int, int]]) -> None:
    devices = "".join(
        f"<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='{bus}' slot='{slot}' "
        f"function='{function}'/></source></hostdev>"
        for bus, slot, function in places
    )
    text = f"<domain><name>x</name><memory>1048576</memory><devices>{devices}</devices></domain>"
    (done,) = convert("libvirt", text.encode(), Wishes(default_class="g"))
    assert len(done.machine.devices) == done.devices.devices == len(places)
    listed = json.loads(done.objects[0]["metadata"]["annotations"].get(UNRESOLVED_ANNOTATION, "[]"))
    assert sum(1 + len(card.get("functions", ())) for card in listed) == len(places)


def _vmx(n: int, kind: int) -> tuple[str, int]:
    name = f"pciPassthru{n}"
    forms = (
        f'{name}.id = "00000:{n:03}:00.0"\n{name}.vendorId = "4318"\n{name}.deviceId = "{n}"\n',
        f'{name}.vgpu = "grid_a100-{n}c"\n',
        f'{name}.allowedDevices = "0x10de:0x2330"\n',
        f'{name}.systemId = "BYPASS"\n{name}.networkName = "n"\n',
        "",
    )
    return f'{name}.present = "TRUE"\n{forms[kind]}', 1


def _proxmox(n: int, kind: int) -> tuple[str, int]:
    forms = (
        (f"hostpci{n}: {n:02x}:00.0,pcie=1", 1),
        (f"hostpci{n}: host={n:02x}:00;{n:02x}:01.1", 2),
        (f"hostpci{n}: {n:02x}:00.0,mdev=nvidia-{n}", 1),
        (f"hostpci{n}: mapping=m{n}", 1),
        (f"usb{n}: host=046d:{n:04x}", 1),
    )
    return f"{forms[kind][0]}\n", forms[kind][1]


def _ovf(n: int, kind: int) -> tuple[str, int]:
    forms = (
        ("vmware.pci.passthrough", "backing.vendorId", "4318"),
        ("vmware.pci.passthrough-vmiop", "backing.vgpu", "grid_a100-8c"),
        ("vmware.pci.passthrough-ah", "backing.customLabel", "l"),
        ("vmware.pci.passthrough-dvx", "backing.deviceClass", "c"),
        ("VMware.PCI.Passthrough", "x", ""),
    )
    subtype, key, value = forms[kind]
    head = f"<Item><InstanceID>{n + 10}</InstanceID><ResourceType>1</ResourceType>"
    return (
        f"{head}<ResourceSubType>{subtype}</ResourceSubType><Config key='{key}' value='{value}'/></Item>",
        1,
    )


def _ovirt(n: int, kind: int) -> tuple[str, int]:
    forms = (
        f"<name>pci_0000_{n:02x}_00_0</name><capability>pci</capability>",
        f"<name>usb_1_{n}</name><capability>usb_device</capability>",
        "<name>scsi_1</name><capability>scsi</capability>",
        "<name>what</name>",
        "<capability>pci</capability><vendor id='0x10de'/><product id='0x2330'/>",
    )
    return f"<host_device>{forms[kind]}</host_device>", 1


MEMORY = "<Item><ResourceType>4</ResourceType><VirtualQuantity>64</VirtualQuantity></Item>"
WRITERS = {
    "vmx": (_vmx, 'displayName = "x"\n{}'),
    "proxmox": (_proxmox, "name: x\n{}\n[old]\nhostpci0: 01:00.0\n"),
    "ovf": (
        _ovf,
        f"<Envelope><VirtualSystem id='x'><VirtualHardwareSection>{MEMORY}{{}}</VirtualHardwareSection>"
        "</VirtualSystem></Envelope>",
    ),
    "ovirt": (_ovirt, "<vm><name>x</name><memory>1048576</memory><host_devices>{}</host_devices></vm>"),
}


@settings(max_examples=30)
@given(st.sampled_from(sorted(WRITERS)), st.lists(st.integers(0, 4), max_size=8))
def test_readers_find_every_device_that_was_written(source: str, kinds: list[int]) -> None:
    write, frame = WRITERS[source]
    written = [write(n, kind) for n, kind in enumerate(kinds)]
    text = frame.format("".join(part for part, _ in written))
    (done,) = convert(source, text.encode(), Wishes(default_class="g"))
    sriov = sum(nic.sriov for nic in done.machine.nics)
    assert done.devices.devices + sriov == sum(count for _, count in written)


def test_functions_of_a_card_go_with_its_gpu() -> None:
    devices = [
        Device("a", "pci", address="0000:41:00.1", ids=AUDIO),
        Device("b", "pci", address="0000:41:00.0", ids=GPU),
        Device("c", "pci", address="0000:41:00.2", ids=UNKNOWN),
        Device("d", "pci", address="0000:42:00.0", ids=NIC),
    ]
    found = resolve(devices, answers(**{GPU: {"gpuClass": "g"}}), HostFacts())
    assert [(name, [d.path for d in card.devices]) for name, card in found.gpus] == [("g", ["b", "a", "c"])]
    assert [card.kind for card in found.unresolved] == ["network adapter"]


def test_the_gpu_of_a_card_need_not_be_its_first_function() -> None:
    devices = [
        Device("a", "pci", address="0000:41:00.0", ids=UNKNOWN),
        Device("b", "pci", address="0000:41:00.1", ids=GPU),
    ]
    found = resolve(devices, answers(**{GPU: {"gpuClass": "g"}}), HostFacts())
    assert [[d.path for d in card.devices] for _, card in found.gpus] == [["b", "a"]]


def test_a_function_that_the_map_names_is_not_folded() -> None:
    devices = [
        Device("a", "pci", address="0000:41:00.0", ids=GPU),
        Device("b", "pci", address="0000:41:00.1", ids=AUDIO),
    ]
    given_ = {GPU: {"gpuClass": "g"}, "41:00.1": {"leave": True}}
    found = resolve(devices, answers(**given_), HostFacts())
    assert (len(found.gpus), len(found.left)) == (1, 1)


def test_two_virtual_functions_of_a_gpu_are_two() -> None:
    devices = [Device(str(f), "pci", address=f"0000:41:00.{f}", ids=GPU) for f in (4, 5)]
    assert len(resolve(devices, answers(**{GPU: {"gpuClass": "g"}}), HostFacts()).gpus) == 2


def test_an_answer_for_a_whole_card_is_one_gpu() -> None:
    devices = [Device(str(f), "pci", address=f"0000:41:00.{f}") for f in (0, 1)]
    found = resolve(devices, answers(**{"41:00": {"gpuClass": "g"}}), HostFacts())
    assert [len(card.devices) for _, card in found.gpus] == [2]


def test_an_address_that_is_named_twice_is_one_gpu() -> None:
    devices = [Device(path, "pci", address="0000:41:00.0", ids=GPU) for path in ("a", "b")]
    assert len(resolve(devices, answers(**{GPU: {"gpuClass": "g"}}), HostFacts()).gpus) == 1


def test_mdevs_get_their_profile_from_the_hosts_node_devices() -> None:
    uuid = "83c32df7-d52e-4ec1-9668-1f3c7e4df107"
    known = HostFacts(mdevs={uuid: "nvidia-471"}, type_names={"nvidia-471": "NVIDIA A40-8Q"})
    (card,) = resolve([Device("m", "mdev", uuid=uuid)], DeviceMap(), known).unresolved
    assert (card.kind, card.product, card.suggestion) == ("gpu", "A40-8Q", "a40-8q")
    found = resolve([Device("m", "mdev", uuid=uuid)], answers(**{"A40-8Q": {"gpuClass": "g"}}), known)
    assert [name for name, _ in found.gpus] == ["g"]
    (other,) = resolve([Device("m", "mdev", uuid=uuid, hint="vfio-ccw")], DeviceMap(), HostFacts()).unresolved
    assert other.kind == "vfio-ccw"


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("GRID T4-16Q", "T4-16Q"),
        ("grid_a100-8c", "A100-8C"),
        ("NVIDIA A100-1-5CME", "A100-1-5CME"),
        ("grid_rtx6000-24q", "RTX6000-24Q"),
        ("NVIDIA H100XM-80C", "H100XM-80C"),
        ("NVIDIA L40S-48Q", "L40S-48Q"),
        ("nvidia-222", ""),
        ("mockup-vmiop", ""),
        ("i915-GVTg_V5_4", ""),
    ],
)
def test_profiles_of_vgpus(name: str, profile: str) -> None:
    assert vgpu_profile(name) == profile


def test_suggested_classes_are_names_of_classes() -> None:
    assert suggested_class("RTX 6000 Ada") == "rtx-6000-ada"
    assert suggested_class("NVIDIA-H100-80GB-HBM3") == "h100-80gb-hbm3"
    assert suggested_class("Tesla M10") == "m10"


def test_what_is_known_but_not_mapped_is_suggested_and_unresolved() -> None:
    (done,) = converted("vmx", {})
    assert {gpu["class"] for gpu in done.objects[0]["spec"]["gpus"]} == {
        "h100-80gb-hbm3",
        "a100-80gb-pcie",
        "a100-8c",
    }
    assert len(done.devices.unresolved) == 4
    assert done.objects[0]["spec"]["runStrategy"] == "Halted"


def test_a_machine_whose_devices_say_no_class_is_refused_with_what_to_put_into_the_map() -> None:
    text = (
        "<domain><name>x</name><memory>1048576</memory><devices><hostdev mode='subsystem' type='pci'><source>"
        "<address domain='0' bus='1' slot='0' function='0'/></source></hostdev></devices></domain>"
    )
    with pytest.raises(VmtError) as raised:
        convert("libvirt", text.encode())
    assert raised.value.code is Code.NO_GPU
    assert '{"devices": {"0000:01:00.0": {"gpuClass": "CLASS"}}}' in str(raised.value)
    (done,) = convert("libvirt", text.encode(), Wishes(default_class="g"))
    assert done.objects[0]["spec"]["gpus"] == [{"class": "g", "count": 1}]
    assert UNRESOLVED_ANNOTATION in done.objects[0]["metadata"]["annotations"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"device": {}}, "VMT-A002: device: unknown field"),
        ({"devices": {"x": {}}}, "VMT-A001: devices.x: .*exactly one"),
        ({"devices": {"x": {"gpuClass": "a", "leave": True}}}, "VMT-A001: devices.x: .*exactly one"),
        ({"devices": {"x": {"hostDevice": "nvidia.com/H100"}}}, "devices.x.hostDevice: .*no GPU"),
        ({"devices": {"x": {"gpuClass": "Not A Name"}}}, "devices.x.gpuClass: .*a DNS name"),
        ({"addresses": {"0000:01:00.0": "10de2330"}}, "addresses.0000:01:00.0: .*vendor:device in hex"),
        ({"addresses": {"0000:01:00": "10de:2330"}}, "addresses.0000:01:00.*with its function"),
        ({"addresses": {"10de:2330": "10de:2330"}}, "addresses.10de:2330.*with its function"),
        ({"networks": {"x": {"pod": False}}}, "networks.x.pod: .*True"),
        ({"disks": {"x": "-1"}}, "disks.x: .*quantity"),
    ],
)
def test_maps_that_are_wrong_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(VmtError, match=said):
        validate(DeviceMap, wrong)


def test_names_that_are_wished_can_be() -> None:
    for wish, said in (
        ({"namespace": ""}, 'namespace: invalid value .found "".; expected a DNS label'),
        ({"namespace": "a/b"}, 'namespace: invalid value .found "a/b"'),
        (
            {"storage_class": "Fast SSD"},
            'storageClass: invalid value .found "Fast SSD".; expected a DNS name',
        ),
    ):
        with pytest.raises(VmtError, match=f"VMT-A001: {said}"):
            Wishes(**wish)  # type: ignore[arg-type]
    assert Wishes(namespace="design", storage_class="csi.fast").storage_class == "csi.fast"


def test_the_map_of_the_documentation_is_one() -> None:
    text = (ROOT / "docs" / "migration.md").read_text()
    (block,) = re.findall(r"```yaml\n(devices:.*?)```", text, re.S)
    assert len(validate(DeviceMap, load_document(block)).devices) == 7


def test_addresses_of_a_map_say_what_is_there() -> None:
    given_ = validate(DeviceMap, {"addresses": {"41:00.0": "10DE:2230"}})
    (card,) = resolve([Device("a", "pci", address="0000:41:00.0")], given_, HostFacts()).unresolved
    assert card.product == "NVIDIA-RTX-A6000"
    (card,) = resolve([Device("a", "pci", address="0000:41:00")], given_, HostFacts()).unresolved
    assert card.product == "NVIDIA-RTX-A6000", "a whole card is what its first function is"


# -- readers --------------------------------------------------------------------------------------------------------


def test_vfio_in_qemus_command_line_is_a_device() -> None:
    text = """<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>x</name><memory>1024</memory>
    <qemu:commandline>
      <qemu:arg value='-device'/><qemu:arg value='{"driver":"vfio-pci","host":"0000:c1:00.0"}'/>
      <qemu:arg value='--device'/><qemu:arg value='vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:c2:00.0'/>
      <qemu:arg value='-device'/>
      <qemu:arg value='vfio-pci,sysfsdev=/sys/bus/mdev/devices/83c32df7-d52e-4ec1-9668-1f3c7e4df107'/>
      <qemu:arg value='-cpu'/><qemu:arg value='host,kvm=off,hv_vendor_id=abc'/>
    </qemu:commandline></domain>"""
    (machine,) = libvirt.read(text.encode())
    assert [(d.bus, d.address or d.uuid) for d in machine.devices] == [
        ("pci", "0000:c1:00.0"),
        ("pci", "0000:c2:00.0"),
        ("mdev", "83c32df7-d52e-4ec1-9668-1f3c7e4df107"),
    ]
    assert (machine.guest.kvm_hidden, machine.guest.vendor_id) == (True, "abc")


def test_ids_and_addresses_of_vmx_are_decimal_unless_they_say_hex() -> None:
    (machine,) = converted("vmx", {})
    found = {d.path: (d.bus, d.address, d.ids, d.allowed, d.name) for d in machine.machine.devices}
    assert found["pciPassthru0"] == ("pci", "0000:af:00.0", "10de:2330", (), "")
    assert found["pciPassthru1"] == ("dynamic", "", "", ("10de:20b5", "10de:20f1"), "Training")
    assert found["pciPassthru2"] == ("vgpu", "", "", (), "grid_a100-8c")
    assert found["pciPassthru3"][:3] == ("pci", "0000:1a:01.2", "15b3:1018")
    assert set(found) == {f"pciPassthru{n}" for n in range(4)}, "BYPASS is an SR-IOV NIC, 5 is not present"
    assert [nic.sriov for nic in machine.machine.nics] == [False, True]


def test_vendors_of_ovf_are_signed_decimals_beside_hex_devices() -> None:
    (machine,) = converted("ovf")
    assert [d.ids for d in machine.machine.devices] == ["", "10de:1c82", "10de:0fb9", "8086:0a54"]
    kinds = [(c.kind, len(c.devices)) for c in machine.devices.unresolved]
    assert kinds == [("gpu", 1), ("gpu", 2), ("", 1)], "the sound of a GPU goes with it"
    assert machine.machine.cpu.vcpus == 16, "the default deployment option"


def test_snapshots_of_proxmox_are_not_read() -> None:
    (machine,) = proxmox.read(b"name: x\nhostpci0: 01:00\n\n[old]\nhostpci1: 02:00.0\nscsi0: a:b,size=1G\n")
    assert [(d.path, d.address) for d in machine.devices] == [("hostpci0", "0000:01:00")]
    assert machine.drives == ()


def test_ids_that_proxmox_shows_the_guest_are_not_the_devices() -> None:
    (machine,) = proxmox.read(b"name: x\nhostpci0: 01:00.0,vendor-id=0x10de,device-id=0x2330\n")
    assert machine.devices[0].ids == ""
    assert [lost.path for lost in machine.lost] == ["hostpci0/vendor-id", "hostpci0/device-id"]


def test_a_flavor_asks_for_as_many_devices_as_its_alias_says() -> None:
    first, second = openstack.read((INPUTS / "servers.json").read_bytes())
    assert [d.name for d in first.devices] == ["a100", "a100", "nic"]
    assert [(d.bus, d.name) for d in second.devices] == [("vgpu", "CUSTOM_NVIDIA_471")]


def test_a_flavor_that_is_only_named_is_looked_up_or_refused() -> None:
    server = {"id": "s", "name": "s", "flavor": {"id": "f", "links": []}, "image": ""}
    with pytest.raises(VmtError, match=r"server\.flavor: is not complete"):
        openstack.read(json.dumps({"server": server}).encode())
    flavors = [{"id": "f", "vcpus": 4, "ram": 1024, "disk": 1}]
    (machine,) = openstack.read(json.dumps({"server": server, "flavors": flavors}).encode())
    assert (machine.cpu.vcpus, machine.memory.bytes) == (4, 1 << 30)


def test_what_openstacks_client_prints_is_read() -> None:
    shown = {
        "name": "s",
        "flavor": {"vcpus": 2, "ram": 1024, "disk": 10, "extra_specs": {"pci_passthrough:alias": "a100:1"}},
        "image": "ubuntu (70a599e0-31e7-49b7-b260-868f441e862b)",
        "addresses": {"private": ["192.168.1.30"]},
        "volumes_attached": [{"id": "v"}],
    }
    (machine,) = openstack.read(json.dumps(shown).encode())
    assert [drive.location for drive in machine.drives] == [
        "image 70a599e0-31e7-49b7-b260-868f441e862b",
        "volume v",
    ]
    assert (len(machine.nics), [d.name for d in machine.devices]) == (1, ["a100"])


@pytest.mark.parametrize(("bus", "found"), [("0x0a", "0a"), ("10", "0a"), ("012", "0a"), ("01", "01")])
def test_addresses_of_libvirt_are_numbers_as_c_writes_them(bus: str, found: str) -> None:
    text = (
        "<domain><name>x</name><memory>1024</memory><devices><hostdev mode='subsystem' type='pci'><source>"
        f"<address domain='0' bus='{bus}' slot='00' function='0'/></source></hostdev></devices></domain>"
    )
    (machine,) = libvirt.read(text.encode())
    assert machine.devices[0].address == f"0000:{found}:00.0"


def test_the_boot_order_of_libvirt_is_by_device_or_by_kind() -> None:
    text = """<domain><name>x</name><memory>1024</memory><os><boot dev='network'/><boot dev='hd'/></os><devices>
    <disk type='file' device='cdrom'><source file='a.iso'/><target dev='sda'/></disk>
    <disk type='file'><source file='a'/><target dev='vda'/></disk>
    <disk type='file'><source file='b'/><target dev='vdb'/></disk>
    <interface type='bridge'><source bridge='b'/></interface>{}</devices></domain>"""
    (machine,) = libvirt.read(text.format("").encode())
    assert ([drive.boot for drive in machine.drives], machine.nics[0].boot) == ([0, 2, 0], 1)
    own = "<disk type='file'><source file='c'/><target dev='vdc'/><boot order='1'/></disk>"
    (machine,) = libvirt.read(text.format(own).encode())
    assert ([drive.boot for drive in machine.drives], machine.nics[0].boot) == ([0, 0, 0, 1], 0)


def test_mdev_types_of_ovirt_are_in_a_custom_property_or_of_their_own() -> None:
    base = "<vm><name>x</name><memory>1048576</memory>{}</vm>"
    old = (
        "<custom_properties><custom_property><name>mdev_type</name><value>a,b</value></custom_property>"
        "</custom_properties>"
    )
    new = (
        "<mediated_devices><mediated_device><spec_params><property><name>mdevType</name><value>c</value></property>"
        "</spec_params></mediated_device></mediated_devices>"
    )
    assert [d.name for d in ovirt.read(base.format(old).encode())[0].devices] == ["a", "b"]
    assert [d.name for d in ovirt.read(base.format(old + new).encode())[0].devices] == ["c"]


def test_dynamic_directpath_in_ovf_has_its_allowed_devices() -> None:
    item = (
        "<Item><InstanceID>9</InstanceID><ResourceType>1</ResourceType>"
        "<ResourceSubType>vmware.pci.passthrough-ah</ResourceSubType>"
        "<Config key='backing.allowedDevice[0].vendorId' value='4318'/>"
        "<Config key='backing.allowedDevice[0].deviceId' value='9008'/></Item>"
    )
    memory = "<Item><ResourceType>4</ResourceType><VirtualQuantity>64</VirtualQuantity></Item>"
    hardware = f"<VirtualHardwareSection>{memory}{item}</VirtualHardwareSection>"
    text = f"<Envelope><VirtualSystem id='x'>{hardware}</VirtualSystem></Envelope>"
    (machine,) = ovf.read(text.encode())
    assert [(d.bus, d.allowed) for d in machine.devices] == [("dynamic", ("10de:2330",))]


@pytest.mark.parametrize(
    ("unit", "memory"),
    [
        ("byte * 2^20", 8 << 20),
        ("byte*1024*1024", 8 << 20),
        ("MegaBytes", 8 << 20),
        ("bytes * 10^6", 8_000_000),
    ],
)
def test_units_of_ovf_are_products_of_powers(unit: str, memory: int) -> None:
    item = f"<Item><ResourceType>4</ResourceType><AllocationUnits>{unit}</AllocationUnits>"
    hardware = (
        f"<VirtualHardwareSection>{item}<VirtualQuantity>8</VirtualQuantity></Item></VirtualHardwareSection>"
    )
    (machine,) = ovf.read(f"<Envelope><VirtualSystem id='x'>{hardware}</VirtualSystem></Envelope>".encode())
    assert machine.memory.bytes == memory


def test_ovf_before_1_0_says_in_a_type_what_a_section_is() -> None:
    item = (
        "<Item><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>64</rasd:VirtualQuantity></Item>"
    )
    hardware = f"<Section xsi:type='ovf:VirtualHardwareSection_Type'>{item}</Section>"
    text = f"<Envelope><Content ovf:id='x' xsi:type='ovf:VirtualSystem_Type'>{hardware}</Content></Envelope>"
    (machine,) = ovf.read(text.encode())
    assert (machine.name, machine.memory.bytes) == ("x", 64 << 20)


def test_usb_of_vmx_is_a_device() -> None:
    (machine,) = vmx.read(b'displayName = "x"\nusb.autoConnect.device0 = "0x46d:0xc52b"\n')
    assert [d.bus for d in machine.devices] == ["usb"]
