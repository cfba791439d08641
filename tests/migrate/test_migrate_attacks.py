"""Bad and hostile input: one clear error, never a traceback; and no credentials outside of Secrets."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from migrate_samples import EXAMPLE, INPUTS, SAMPLES, converted
from typer.testing import CliRunner

from vmtenancy.api.parsing import validate
from vmtenancy.cli.main import app
from vmtenancy.errors import Code, VmtError
from vmtenancy.migrate import ova
from vmtenancy.migrate.convert import MOST_BYTES, READERS, Wishes, convert
from vmtenancy.migrate.devices import DeviceMap
from vmtenancy.migrate.text import HIDDEN, integer, shown, without_credentials

SECRETS = ("hunter2", "s3cr3t", "passw0rd", "tops3cret")


def invoke(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["migrate", "convert", *map(str, args)])


def failure(*args: str | Path) -> VmtError:
    done = invoke(*args)
    assert isinstance(done.exception, VmtError), done.output
    return done.exception


# -- XML ------------------------------------------------------------------------------------------------------------

BOMB = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;&a;'>]><domain><name>&b;</name></domain>"
EXTERNAL = "<!DOCTYPE d [<!ENTITY x SYSTEM 'file:///etc/hostname'>]><domain><name>&x;</name></domain>"
DEEP = "<domain>" + "<a>" * 100 + "</a>" * 100 + "</domain>"
WIDE = "<domain>" + "<a/>" * 50_001 + "</domain>"


@pytest.mark.parametrize("source", ["libvirt", "ovf", "ovirt"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "has a document type"),
        (EXTERNAL, "has a document type"),
        (DEEP, "too large"),
        (WIDE, "too large"),
        ("<domain>", "no well-formed XML"),
        ("", "no well-formed XML"),
        ("<?xml version='1.0' encoding='nosuch'?><domain/>", "can not be decoded"),
        ("<other/>", "is no"),
    ],
)
def test_xml_that_is_no_machine_is_refused(source: str, text: str, words: str) -> None:
    with pytest.raises(VmtError, match=words) as raised:
        convert(source, text.encode())
    assert raised.value.code is Code.SOURCE


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("libvirt", f"<domain><name>x</name><memory>1</memory>{'<a/>' * 20_000}</domain>"),
        ("libvirt", f"<domain><name>x</name><memory>1</memory><a b='{'passw' * 100_000}'/></domain>"),
        ("vmx", 'displayName = "x"\na' + " " * 200_000 + "b = 1"),
        ("vmx", 'displayName = "x"\n' + "".join(f'ethernet{n}.present = "TRUE"\n' for n in range(30_000))),
        ("vmx", "\n" * 1_000_000),
        ("proxmox", "name: x\nnotes: " + "a " * 200_000),
        ("proxmox", "name: x\nnotes: " + "a-" * 200_000),
    ],
)
def test_large_inputs_take_no_more_than_their_size(source: str, text: str) -> None:
    began = time.process_time()
    with contextlib.suppress(VmtError):
        convert(source, text.encode(), Wishes(default_class="g"))
    assert time.process_time() - began < 5, "what is quadratic takes minutes"


def test_node_devices_are_read_as_carefully(tmp_path: Path) -> None:
    path = tmp_path / "nodedev.xml"
    path.write_text(BOMB)
    error = failure("--from", "libvirt", INPUTS / "x.xml", "--nodedev", path)
    assert error.code is Code.SOURCE
    assert str(path) in str(error)


# -- archives -------------------------------------------------------------------------------------------------------


def archive(*members: tuple[str, bytes | str]) -> bytes:
    """A tar of files; of a text, a symbolic link to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def test_the_descriptor_of_an_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.ova"
    text = (INPUTS / "analytics.ovf").read_bytes()
    path.write_bytes(archive(("analytics.ovf", text), ("disk.vmdk", b"\0" * 5000)))
    done = invoke("--from", "ovf", path, "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["items"][0]["metadata"]["name"] == "analytics-3"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("../evil.ovf", b"<Envelope/>")], "leads out of the archive"),
        ([("/etc/evil.ovf", b"<Envelope/>")], "leads out of the archive"),
        ([("c:evil.ovf", b"<Envelope/>")], "leads out of the archive"),
        ([("a.ovf", b"<Envelope/>"), ("..\\evil", b"x")], "leads out of the archive"),
        ([("a.ovf", "/etc/shadow")], "is a link or device"),
        ([("a.ovf", b"<Envelope/>"), ("b.ovf", b"<Envelope/>")], "second descriptor"),
        ([("disk.vmdk", b"x")], "has no descriptor"),
    ],
)
def test_archives_that_should_not_be_are_refused(members: list[tuple[str, bytes | str]], words: str) -> None:
    with pytest.raises(VmtError, match=words) as raised:
        ova.descriptor(io.BytesIO(archive(*members)), MOST_BYTES)
    assert raised.value.code is Code.SOURCE


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def sized(field: bytes) -> bytes:
    """A header with just this in the place of its size, and the sum that belongs to it."""
    block = bytearray(header("a.ovf", 4))
    block[124:136], block[148:156] = field.ljust(12, b"\0"), b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (header("a.ovf", 1 << 40), "too large"),
        (header("pax", 1 << 40, b"x"), "header that is too large"),
        (header("a.ovf", 1000) + b"<Env", "is cut off"),
        (header("a.ovf", 4)[:148] + b"7777777\0" + header("a.ovf", 4)[156:], "no header of a tar"),
        (header("a.ovf", 4, b"3"), "is a link or device"),
        (sized(b"-0000000001") + b"<Env" * 100, "no header of a tar"),
        (sized(b"\xff" * 12), "no header of a tar"),
    ],
)
def test_headers_that_lie_are_refused_without_reading_what_they_promise(data: bytes, words: str) -> None:
    with pytest.raises(VmtError, match=words):
        ova.descriptor(io.BytesIO(data), MOST_BYTES)


def test_an_archive_of_very_many_members_is_refused() -> None:
    head = header("a", 0)
    assert ova.descriptor(io.BytesIO(head * 9_999 + archive(("m.ovf", b"x"))), MOST_BYTES) == b"x"
    with pytest.raises(VmtError, match="has too many members"):
        ova.descriptor(io.BytesIO(head * 10_000 + archive(("m.ovf", b"x"))), MOST_BYTES)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_come_in_headers_of_their_own(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        member = tarfile.TarInfo("m" * 200 + ".ovf")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    assert ova.descriptor(out, MOST_BYTES) == b"x"


def test_a_size_in_a_pax_header_is_refused() -> None:
    """It would say where the next header is; the header itself then says something else."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("m.ovf")
        member.pax_headers = {"size": "512"}
        tar.addfile(member)
    with pytest.raises(VmtError, match="has a size in a pax header"):
        ova.descriptor(out, MOST_BYTES)


def test_a_description_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.xml"
    with path.open("wb") as file:
        file.truncate(1 << 34)
    assert "is too large" in str(failure("--from", "libvirt", path))


# -- errors name the file and the place -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "text", "place"),
    [
        ("libvirt", "<domain><name>x</name><memory>lots</memory></domain>", "domain/memory"),
        ("libvirt", "<domain><name>x</name><memory unit='furlong'>1</memory></domain>", "unknown unit"),
        ("libvirt", "<domain><memory>1</memory></domain>", "domain/name"),
        (
            "libvirt",
            "<domain><name>x</name><memory>1</memory><vcpu current='3'>2</vcpu></domain>",
            "domain/vcpu@current",
        ),
        ("vmx", "this is not a vmx", "line 1"),
        ("vmx", 'displayName = "x"\nnumvcpus = "many"', "numvcpus"),
        ("vmx", 'displayName = "x"\nencryption.data = "abc"', "is encrypted"),
        ("proxmox", "name: x\nnonsense", "line 2"),
        ("proxmox", "name: x\nhostpci0: zz:00", "hostpci0"),
        ("proxmox", "name: x\nscsi0: a:b,size=big", "scsi0/size"),
        ("proxmox", "name: x\nargs: 'open", "args"),
        ("openstack", "[]", "is no object"),
        ("openstack", "{", "is no JSON"),
        ("openstack", '{"server": {"flavor": {"vcpus": true, "ram": 1}}}', "server.flavor.vcpus"),
        ("ovf", "<Envelope><VirtualSystem/></Envelope>", "VirtualHardwareSection"),
        ("ovirt", "<vm><name>x</name></vm>", "vm/memory"),
    ],
)
def test_an_error_says_where(source: str, text: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_text(text)
    error = failure("--from", source, path)
    assert error.code is Code.SOURCE
    assert len(error.problems) == 1
    assert str(path) in str(error)
    assert place in str(error)


def test_files_that_are_not_there_and_maps_that_are_none(tmp_path: Path) -> None:
    assert "can not be read" in str(failure("--from", "libvirt", tmp_path / "nosuch"))
    path = tmp_path / "map.yaml"
    path.write_text("devices: [")
    assert "is no YAML" in str(failure("--from", "vmx", INPUTS / "render.vmx", "--device-map", path))
    path.write_text("devises: {}")
    error = failure("--from", "vmx", INPUTS / "render.vmx", "--device-map", path)
    assert error.code is Code.UNKNOWN_FIELD
    assert str(path) in str(error)


MUTATIONS = (b"", b"0", b"-1", b"9" * 30, b"\xff\0", b"x", b"<a/>")


@settings(max_examples=150)
@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_mutated_inputs_never_end_in_a_traceback(name: str, data: st.DataObject) -> None:
    source, path, _ = SAMPLES[name]
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = min(len(text), at + data.draw(st.integers(0, 30)))
        text[at:end] = data.draw(
            st.sampled_from([b"", b"0", b"-1", b"9" * 30, b"\xff\0", b"x", b"<a/>", text[at:end] * 2])
        )
    try:
        found = convert(source, bytes(text), Wishes(default_class="g", stem="x"))
    except VmtError:
        return
    for conversion in found:
        assert conversion.devices.devices == len(conversion.machine.devices)


@pytest.mark.parametrize("encoding", [b"nosuch", b"\0", b"zlib", b"utf-16", b"windows-1252"])
def test_encodings_of_vmx_that_are_wrong_do_no_harm(encoding: bytes) -> None:
    text = b'.encoding = "%s"\ndisplayName = "caf\xe9"\nmemsize = "64"\n' % encoding
    try:
        (found,) = convert("vmx", text, Wishes(default_class="g"))
        assert found.machine.name == "caf\xe9" or encoding != b"windows-1252"
    except VmtError:
        assert encoding == b"utf-16"


@settings(max_examples=60)
@given(st.sampled_from(sorted(READERS)), st.binary(max_size=200))
def test_noise_never_ends_in_a_traceback(source: str, data: bytes) -> None:
    with pytest.raises(VmtError):
        convert(source, data)


# -- credentials ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLES)
def test_credentials_are_in_secrets_only(name: str) -> None:
    source, path, _ = SAMPLES[name]
    assert any(secret in path.read_text() or "aHVudGVyMg" in path.read_text() for secret in SECRETS)
    for conversion in converted(name):
        others = [obj for obj in conversion.objects if obj["kind"] != "Secret"]
        assert not any(secret in json.dumps(others) for secret in SECRETS)
        assert not any(secret in repr(conversion) for secret in SECRETS if secret != "hunter2")
    done = invoke("--from", source, path, "--default-class", "g", "-o", "json")
    assert done.exit_code == 0, done.output
    assert not any(secret in done.stderr for secret in SECRETS)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("rbd:pool/x:id=a:key_password=abc", "abc"),
        ("https://ada:abc@example.com/x", "ada:abc"),
        ("-object secret,id=s,data=1 password=abc,x", "abc"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----", "abc"),
        ('"api_token": "abc"', "abc"),
    ],
)
def test_credentials_in_texts_are_hidden(text: str, hidden: str) -> None:
    assert hidden not in without_credentials(text)
    assert HIDDEN in without_credentials(text)


@pytest.mark.parametrize(
    "name", ["passwd", "cipassword", "adminPass", "RemoteDisplay.vnc.key", "guestinfo.token"]
)
def test_values_under_names_of_credentials_are_hidden(name: str) -> None:
    assert shown(name, "abc") == HIDDEN


@pytest.mark.parametrize(
    "inside",
    [
        "<metadata><app><db><password>hunter2</password></db></app></metadata>",
        "<sysinfo type='smbios'><oemStrings><entry>io.systemd.credential:x=hunter2</entry></oemStrings></sysinfo>",
        "<qemu:commandline><qemu:arg value='-object'/><qemu:arg value='secret,id=s0,data=hunter2'/></qemu:commandline>",
    ],
)
def test_credentials_of_what_is_not_kept_are_told_nowhere(inside: str, tmp_path: Path) -> None:
    path = tmp_path / "cad.xml"
    path.write_text((EXAMPLE / "cad.xml").read_text().replace("</domain>", f"{inside}</domain>"))
    done = invoke("--from", "libvirt", path, "--default-class", "g", "-o", "json")
    assert done.exit_code == 0, done.output
    objects = json.loads(done.stdout)["items"]
    assert "hunter2" not in done.stderr
    assert "hunter2" not in json.dumps([obj for obj in objects if obj["kind"] != "Secret"])


def test_what_is_told_moves_no_terminal() -> None:
    assert shown("name", "a\x1b]0;t\x07") == "a?]0;t?"


def test_machines_of_one_name_get_names_of_their_own() -> None:
    flavor = {"vcpus": 1, "ram": 512, "extra_specs": {}}
    servers = [{"id": name, "name": name, "flavor": flavor} for name in ("a", "a-2", "a")]
    data = json.dumps({"servers": servers}).encode()
    machines = convert("openstack", data, Wishes(default_class="g"))
    assert len({machine.objects[0]["metadata"]["name"] for machine in machines}) == 3


def test_a_password_in_notes_is_not_shown() -> None:
    text = b"#root password=hunter2 is set\nmemory: 512\nhostpci0: 0000:41:00\n"
    (done,) = convert("proxmox", text, Wishes(default_class="g"))
    assert "is set" in json.dumps(done.objects)
    assert "hunter2" not in json.dumps(done.objects)


@pytest.mark.parametrize(
    ("host", "name"), [("h", "x.img?token=hunter2"), ("me:word@h", "x.img"), ("h", "x.img")]
)
def test_a_url_with_credentials_is_no_source(host: str, name: str) -> None:
    text = f"""<domain><name>a</name><memory>1048576</memory><devices><disk type='network' device='disk'>
    <source protocol='https' name='{name}'><host name='{host}' port='443'/></source><target dev='vda'/></disk>
    </devices></domain>"""
    answers = validate(DeviceMap, {"disks": {"vda": "1Gi"}})
    (done,) = convert("libvirt", text.encode(), Wishes(default_class="g", answers=answers))
    (volume,) = (obj for obj in done.objects if obj["kind"] == "DataVolume")
    plain = {"http": {"url": "https://h:443/x.img"}}
    assert volume["spec"]["source"] == (plain if (host, name) == ("h", "x.img") else {"upload": {}})
    assert "hunter2" not in json.dumps(done.objects)


@pytest.mark.parametrize("text", ["1_000", "\u0661", "1e3", "--1", ""])
def test_numbers_are_as_sources_write_them(text: str) -> None:
    with pytest.raises(VmtError, match="VMT-M001: memory: invalid value"):
        integer("memory", text)
