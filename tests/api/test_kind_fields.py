"""Each field of each kind: one accepted and one refused value, offline and on the real API server.

The table is in `fields/`: a valid object, and for each path `[accepted, refused]`. A path with an index stands for the
items of the list.
"""

import copy
import re
from pathlib import Path

import pytest
import yaml

from vmtenancy.api import KINDS, parse
from vmtenancy.api.common import Status
from vmtenancy.api.crdgen import object_schema
from vmtenancy.errors import VmtError

FOLDER = Path(__file__).parent / "fields"
STATUS = yaml.safe_load((FOLDER / "status.yaml").read_text())
CONDITION = STATUS["status.conditions"][0][0]


def table():
    for path in sorted(FOLDER.glob("*.yaml")):
        if path.name == "status.yaml":
            continue
        for number, entry in enumerate(yaml.safe_load(path.read_text())):
            base, fields = entry["base"], dict(entry["fields"])
            status = KINDS[base["kind"]].model_fields.get("status")
            if number == 0 and status is not None and issubclass(status.annotation, Status):
                base = copy.deepcopy(base)
                base["status"]["conditions"] = [CONDITION]
                fields |= STATUS
            yield base, fields


def with_value(base, path, value):
    """A copy of `base` with `value` at `path`."""
    obj = copy.deepcopy(base)
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"[^.\[\]]+", path)]
    at = obj
    for key in parents:
        at = at[key]
    at[last] = value
    return obj


CASES = [
    pytest.param(base, path, accepted, refused, id=f"{base['kind']}-{path}")
    for base, fields in table()
    for path, (accepted, refused) in fields.items()
]


def test_the_table_covers_every_field():
    def paths(schema, path):
        yield path
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return
        for items, prefix in ((schema, path), (schema.get("items", {}), f"{path}[]")):
            for key, field in items.get("properties", {}).items():
                yield from paths(field, f"{prefix}.{key}")

    expected = {
        (kind, path)
        for kind, model in KINDS.items()
        for part in ("spec", "status")
        if part in (properties := object_schema(model)["properties"])
        for path in paths(properties[part], part)
    }
    covered = {(base["kind"], re.sub(r"\d+", "", path)) for base, fields in table() for path in fields}
    assert covered == expected


@pytest.mark.parametrize(("base", "path", "accepted", "refused"), CASES)
def test_offline(base, path, accepted, refused):
    parse(base)
    parse(with_value(base, path, accepted))
    with pytest.raises(VmtError) as caught:
        parse(with_value(base, path, refused))
    assert any(problem.path.startswith(path) for problem in caught.value.problems), str(caught.value)


@pytest.mark.cluster
def test_on_the_api_server(admin, subtests):
    for base, fields in table():
        with subtests.test(base["kind"]):
            assert problems(admin, base, fields) == []


def problems(admin, base, fields):
    """One line for each value that the API server does not take, or refuse, as the table says."""
    model = KINDS[base["kind"]]
    namespace = f"/namespaces/{base['metadata']['namespace']}" if model.namespaced else ""
    url = f"/apis/vmtenancy.io/v1alpha1{namespace}/{model.plural}"
    strict = "?fieldValidation=Strict&dryRun=All"
    found = []

    def check(path, send):
        accepted, refused = fields[path]
        if (answer := send(with_value(base, path, accepted))).code >= 300:
            found.append(f"{path}: accepted value refused: {answer.message}")
        answer = send(with_value(base, path, refused))
        if answer.code < 400:
            found.append(f"{path}: {refused!r} was not refused")
        elif path not in answer.message:
            found.append(f"{path}: refused for another reason: {answer.message}")

    for path in fields:
        if path.startswith("spec"):
            check(path, lambda obj: admin("POST", url + strict, obj))
    created = admin("POST", f"{url}?fieldValidation=Strict", base)
    assert created.code == 201, created.message
    metadata = created.body["metadata"]
    for path in fields:
        if path.startswith("status"):
            status = f"{url}/{metadata['name']}/status{strict}"
            check(path, lambda obj, status=status: admin("PUT", status, obj | {"metadata": metadata}))
    return found
