"""The CRDs are what the models say, and the API server takes them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vmtenancy.api import KINDS
from vmtenancy.api.crdgen import differences, manifests, run
from vmtenancy.api.gpuvm import OWNED_VM_PATHS
from vmtenancy.api.reference import pages
from vmtenancy.errors import Code

ROOT = Path(__file__).parents[2]


def read(folder, suffix):
    return {path.name: path.read_text() for path in (ROOT / folder).glob(f"*{suffix}")}


def test_crds_are_up_to_date():
    assert differences(manifests(), read("crds", ".yaml")) == [], "run: python -m vmtenancy.api.crdgen crds"


def test_reference_is_up_to_date():
    wrong = differences(pages(), read("docs/reference", ".md"))
    assert wrong == [], "run: python -m vmtenancy.api.reference docs/reference"


def test_every_code_has_its_entry():
    entries = [line for line in (ROOT / "docs/errors.md").read_text().splitlines() if line.startswith("## ")]
    assert [entry.split()[1].rstrip(":") for entry in entries] == sorted(code.value for code in Code)


def test_check_tells_what_differs(tmp_path, capsys):
    assert run(manifests, ".yaml", [str(tmp_path)]) == 0
    assert run(manifests, ".yaml", ["--check", str(tmp_path)]) == 0
    (tmp_path / "tenants.yaml").write_text("kind: Tenant\n")
    (tmp_path / "cohorts.yaml").unlink()
    (tmp_path / "clans.yaml").write_text("kind: Clan\n")
    assert run(manifests, ".yaml", ["--check", str(tmp_path)]) == 1
    lines = [Path(line).name for line in capsys.readouterr().err.splitlines()]
    assert lines == [
        "clans.yaml: not generated from any model",
        "cohorts.yaml: missing",
        "tenants.yaml: differs",
    ]


def test_nothing_that_a_structural_schema_forbids():
    def walk(node):
        yield node
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            yield from walk(value)

    for text in manifests().values():
        schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        keys = {key for node in walk(schema) if isinstance(node, dict) for key in node}
        assert not keys & {"$ref", "$defs", "const", "oneOf", "title"}


def test_every_field_is_described():
    def undescribed(schema, path):
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return
        for key, field in schema.get("properties", {}).items():
            if "description" not in field:
                yield f"{path}.{key}"
            yield from undescribed(field.get("items", field), f"{path}.{key}")

    for name, text in manifests().items():
        schema = yaml.safe_load(text)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        for part in ("spec", "status"):
            assert list(undescribed(schema.get(part, {}), f"{name}: {part}")) == []


@pytest.mark.parametrize("owned", OWNED_VM_PATHS, ids=lambda owned: owned.path)
def test_owned_paths_are_found_where_they_are_set(owned):
    overlay = {}
    at = overlay
    *parents, last = owned.keys
    for key in parents:
        assert owned.find(overlay) is None
        at = at.setdefault(key, {})
    at[last] = False
    assert owned.find(overlay) is False


def test_import_is_cheap():
    program = "import sys, vmtenancy.api; print('pydantic' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert printed.stdout.strip() == "False"


@pytest.mark.cluster
def test_the_api_server_serves_every_kind(crds):
    served = crds.request("GET", "/apis/vmtenancy.io/v1alpha1")["resources"]
    by_kind = {resource["kind"]: resource for resource in served if "/" not in resource["name"]}
    assert by_kind.keys() == KINDS.keys()
    for kind, model in KINDS.items():
        resource = by_kind[kind]
        assert resource["name"] == model.plural
        assert resource["shortNames"] == [model.short_name]
        assert resource["categories"] == ["vmtenancy"]
        assert resource["namespaced"] == model.namespaced
        status = f"{model.plural}/status" in {resource["name"] for resource in served}
        assert status == model.has_status


@pytest.mark.cluster
def test_columns_show_what_was_granted_beside_what_is_asked_for(crds, admin):
    url = "/apis/vmtenancy.io/v1alpha1/namespaces/default/gpuvms"
    gpus = [{"class": "h100", "count": 4, "alternatives": ["a100"], "minCount": 1}, {"class": "l40s"}]
    made = admin(
        "POST",
        url,
        {
            "apiVersion": "vmtenancy.io/v1alpha1",
            "kind": "GpuVM",
            "metadata": {"name": "columns"},
            "spec": {"gpus": gpus, "cpu": {"cores": 1}, "memory": "1Gi"},
        },
    ).body
    granted = [{"class": "a100", "count": 3}, {"class": "l40s", "count": 1}]
    status = {"phase": "Running", "allocation": {"name": "g", "node": "node-1", "gpus": granted}}
    assert admin("PUT", f"{url}/columns/status", made | {"status": status}).code == 200
    header, row = (re.split(r"\s{2,}", line) for line in crds.kubectl("get", "gpuvm", "columns").splitlines())
    assert header == ["NAME", "CLASS", "COUNT", "PHASE", "NODE", "GRANTED", "UNITS", "AGE"]
    assert row[:-1] == ["columns", "h100", "4", "Running", "node-1", "a100", "3"]
