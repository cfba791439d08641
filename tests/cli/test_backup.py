"""What a backup file has to look like, what is compared, and who inherits; no cluster is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vmtenancy.cli.main import app
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.kube.backup import FORMAT, read
from vmtenancy.kube.inheritance import inherited
from vmtenancy.kube.restore import ORDER, changes, pending
from vmtenancy.reconcile.steps import Object
from vmtenancy.reconcile.world import World, ref_of

HEADER: Object = {
    "apiVersion": "vmtenancy.io/v1alpha1",
    "kind": "Backup",
    "format": FORMAT,
    "time": "2026-11-24T08:00:00Z",
    "vmtenancy": "0.1.0",
    "kubernetes": "v1.36.3",
    "cluster": "c",
    "resourceVersion": "100",
}


def obj(kind: str, name: str, spec: Object | None = None, **metadata: Any) -> Object:
    core = kind == "Namespace"
    found: Object = {
        "apiVersion": "v1" if core else "vmtenancy.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "uid": f"uid-{name}", **metadata},
    }
    return found if core else {**found, "spec": spec or {}}


def tenant(name: str, **metadata: Any) -> Object:
    return obj("Tenant", name, {"namespaces": [name]}, **metadata)


def lines(*documents: Object, header: Object = HEADER, trailer: Object | None = None) -> list[bytes]:
    made = [json.dumps(document).encode() + b"\n" for document in (header, *documents)]
    end = {
        "kind": "BackupEnd",
        "documents": len(documents),
        "sha256": hashlib.sha256(b"".join(made)).hexdigest(),
        **(trailer or {}),
    }
    return [*made, json.dumps(end).encode() + b"\n"]


def refused(content: list[bytes]) -> list[Problem]:
    with pytest.raises(VmtError) as raised:
        read(content, "b")
    return list(raised.value.problems)


def test_a_whole_file_is_read() -> None:
    head = {"epoch": 3, "holder": "x", "sequence": 7}
    backup = read(lines(tenant("a"), obj("Namespace", "a"), obj("GpuLedger", "fleet", head)), "b")
    assert [ref_of(found).name for found in backup.objects] == ["a", "a"]
    assert backup.head == head
    assert backup.header["cluster"] == "c"


def test_an_empty_cluster_has_a_backup_too() -> None:
    assert read(lines(), "b").objects == ()


@pytest.mark.parametrize(
    ("damage", "path", "message"),
    [
        (lambda content: [], "b:1", "no backup of vmtenancy"),
        (lambda content: [b"# a shell script\n", *content[1:]], "b:1", "no backup of vmtenancy"),
        (lambda content: content[1:], "b:1", "no backup of vmtenancy"),
        (lambda content: content[:-1], "b", "the file is cut off"),
        (lambda content: [*content[:-1], content[-1][:30]], "b:4", "no document"),
        (lambda content: [content[0], content[2], content[3]], "b:3", "documents are missing or too many"),
        (
            lambda content: [content[0], content[1].replace(b'"a"', b'"c"'), *content[2:]],
            "b:4",
            "the file was changed",
        ),
        (lambda content: [content[0], b'{"kind": [}\n', *content[2:]], "b:2", "no document"),
        (lambda content: [content[0], b"[" * 100_000 + b"\n", *content[2:]], "b:2", "no document"),
        (lambda content: [content[0], b"\xff\xfe\n", *content[2:]], "b:2", "no document"),
        (lambda content: [*content, content[1]], "b:5", "more after the end"),
    ],
)
def test_a_damaged_file_is_one_error_with_its_line(
    damage: Callable[[list[bytes]], list[bytes]], path: str, message: str
) -> None:
    problem = refused(damage(lines(tenant("a"), tenant("b"))))[0]
    assert (problem.code, problem.path) == (Code.BACKUP, path)
    assert message in problem.message


def test_a_newer_format_is_refused_and_says_what_would_do() -> None:
    newer = {**HEADER, "format": FORMAT + 1, "vmtenancy": "9.1.0"}
    [problem] = refused(lines(tenant("a"), header=newer))
    assert str(problem) == (
        f"VMT-B001: b:1: format: a newer format (found {FORMAT + 1}); expected at most {FORMAT}: use the "
        "vmtenancy that wrote it (9.1.0) or a newer one"
    )


def test_a_newer_version_of_a_kind_is_refused() -> None:
    [problem] = refused(lines({**tenant("a"), "apiVersion": "vmtenancy.io/v9"}))
    assert problem.path == "b:2: apiVersion"
    assert "v1alpha1" in problem.expected


def test_every_bad_document_is_told_with_line_and_field() -> None:
    bad_count = obj("GpuPool", "p", {"selector": 3})
    unknown = tenant("x") | {"spec": {"namespaces": ["x"], "nonsense": 1}}
    found = refused(
        lines(tenant("a"), bad_count, unknown, obj("Secret", "s"), obj("Namespace", ""), tenant("a"))
    )
    assert [(p.code, p.path) for p in found] == [
        (Code.INVALID_FIELD, "b:3: spec.selector"),
        (Code.UNKNOWN_FIELD, "b:4: spec.nonsense"),
        (Code.BACKUP, "b:5: kind"),
        (Code.BACKUP, "b:6: metadata.name"),
        (Code.BACKUP, "b:7"),
    ]
    assert "line 2" in found[-1].expected


def test_thousands_of_bad_lines_are_no_flood() -> None:
    assert len(refused(lines(*(obj("Secret", f"s{number}") for number in range(3000))))) == 20


def test_import_of_a_bad_file_is_one_line_and_needs_no_cluster(tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_bytes(b"".join(lines(tenant("a"))[:-1]))
    result = CliRunner().invoke(app, ["import", str(file), "--kubeconfig", "/nowhere"])
    assert isinstance(result.exception, VmtError)
    assert result.exception.code is Code.BACKUP
    absent = CliRunner().invoke(app, ["import", str(tmp_path / "absent")])
    assert isinstance(absent.exception, VmtError)
    assert "absent can not be read" in str(absent.exception)


# -- comparing -------------------------------------------------------------------------------------------------


def world_of(*objects: Object) -> World:
    world = World()
    for found in objects:
        world.put(found)
    return world


def test_what_others_refer_to_comes_first_and_who_was_older_before_who_was_younger() -> None:
    young = tenant("young", creationTimestamp="2026-01-02T00:00:00Z")
    old = tenant("old", creationTimestamp="2026-01-01T00:00:00Z")
    namespace = obj("Namespace", "old")
    vm = obj("GpuVM", "vm", namespace="old")
    backup = read(lines(young, old), "b")
    found = [ref_of(c.wanted).name for c in changes(backup, World())]
    assert found == ["old", "young"]
    assert ORDER.index("Tenant") < ORDER.index("Namespace") < ORDER.index("GpuVM")
    assert namespace["kind"] in ORDER
    assert vm["kind"] in ORDER


def test_equal_different_and_missing() -> None:
    saved = [
        tenant("equal"),
        tenant("different"),
        tenant("missing"),
        obj("Namespace", "n", labels={"a": "b"}),
    ]
    stored = world_of(
        tenant("equal", resourceVersion="5", finalizers=["x"], generation=2) | {"status": {"usage": []}},
        obj("Tenant", "different", {"namespaces": ["other"], "weight": 2}, annotations={"a": "b"}),
        obj("Namespace", "n", labels={"others": "label"}),
    )
    found = changes(read(lines(*saved), "b"), stored)
    assert [(ref_of(change.wanted).name, change.action, change.paths) for change in found] == [
        ("equal", "unchanged", ()),
        ("different", "differs", ("metadata.annotations", "spec.namespaces", "spec.weight")),
        ("missing", "create", ()),
        ("n", "unchanged", ()),
    ]
    assert [ref_of(change.wanted).name for change in pending(found)] == ["missing"]
    assert [ref_of(change.wanted).name for change in pending(found, overwrite=True)] == [
        "different",
        "missing",
    ]


def test_nothing_of_the_old_cluster_is_written_to_a_new_one() -> None:
    saved = tenant("a", labels={"x": "y"}, creationTimestamp="2026-01-01T00:00:00Z") | {
        "status": {"usage": []}
    }
    [change] = changes(read(lines(saved), "b"), World())
    assert change.wanted == {
        "apiVersion": "vmtenancy.io/v1alpha1",
        "kind": "Tenant",
        "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {"namespaces": ["a"]},
    }


# -- who inherits ----------------------------------------------------------------------------------------------

HEIR = obj("GpuVM", "vm", namespace="team") | {"metadata": {"name": "vm", "namespace": "team", "uid": "new"}}
OURS = {"app.kubernetes.io/managed-by": "vmtenancy", "vmtenancy.io/owner-uid": "old"}


def child(kind: str, namespace: str, owners: tuple[str, ...] = (), **labels: str) -> Object:
    references = [{"kind": "GpuVM", "name": "vm", "uid": uid, "controller": True} for uid in owners]
    metadata: Object = {"name": "vm", "uid": "child", "labels": labels, "ownerReferences": references}
    return {"kind": kind, "metadata": {**metadata, **({"namespace": namespace} if namespace else {})}}


def given(obj: Object, homes: dict[str, str] | None = None) -> tuple[str, list[str]] | None:
    found = inherited(obj, {"old": HEIR}, homes or {})
    if found is None:
        return None
    meta = found["metadata"]
    return meta["labels"].get("vmtenancy.io/owner-uid", ""), [ref["uid"] for ref in meta["ownerReferences"]]


def test_a_machine_gets_the_new_owner_in_its_label_and_its_reference() -> None:
    assert given(child("VirtualMachine", "team", ("old",), **OURS)) == ("new", ["new"])


def test_a_machine_whose_owner_was_deleted_without_it_gets_a_reference_again() -> None:
    machine = inherited(child("VirtualMachine", "team", (), **OURS), {"old": HEIR}, {})
    assert machine is not None
    [reference] = machine["metadata"]["ownerReferences"]
    assert reference == {
        "apiVersion": "vmtenancy.io/v1alpha1",
        "kind": "GpuVM",
        "name": "vm",
        "uid": "new",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def test_a_launcher_keeps_its_owner_and_changes_its_label() -> None:
    assert given(child("Pod", "team", ("instance",), **OURS)) == ("new", ["instance"])


def test_the_host_namespace_and_what_is_in_it() -> None:
    assert given(child("Namespace", "", **OURS)) == ("new", [])
    assert given(child("StatefulSet", "host", **OURS), {"host": "old"}) == ("new", [])
    assert given(child("StatefulSet", "host", **OURS), {"host": "new"}) == ("new", []), "a second attempt"


def test_nothing_is_given_that_is_not_ours_or_goes() -> None:
    assert given(child("ConfigMap", "elsewhere", **OURS), {"elsewhere": "another"}) is None
    assert given(child("ConfigMap", "team", **{"vmtenancy.io/owner-uid": "old"})) is None, "not made by us"
    assert given(child("ConfigMap", "team", ("somebody",))) is None
    assert given(child("ConfigMap", "elsewhere", ("old",))) is None, "a reference across namespaces is void"
    going = child("VirtualMachine", "team", ("old",), **OURS)
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert given(going) is None
