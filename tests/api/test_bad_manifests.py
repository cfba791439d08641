"""Manifests that are wrong in one way each. The comments on top say what the refusal has to name.

`field`, `found` and `allowed` are parts of the API server's message; for a missing or unknown field nothing was found.
Offline, `parse` names the same field.
"""

import re
from pathlib import Path

import pytest
import yaml

from vmtenancy.api import KINDS, parse
from vmtenancy.errors import Code, VmtError

FILES = sorted((Path(__file__).parent / "bad_manifests").glob("*.yaml"))
CASES = [pytest.param(path, id=path.stem) for path in FILES]


def read(path):
    text = path.read_text()
    return yaml.safe_load(text), dict(re.findall(r"^# (field|found|allowed): (.*)$", text, re.MULTILINE))


def test_there_are_enough_of_each_kind():
    kinds = [read(path)[0]["kind"] for path in FILES]
    assert len(kinds) >= 30
    assert {"GpuVM", "VirtualCluster", "Tenant", "GpuClass", "Cohort"} <= set(kinds)


@pytest.mark.parametrize("path", CASES)
def test_refused_offline(path):
    obj, expected = read(path)
    with pytest.raises(VmtError) as caught:
        parse(obj)
    (problem,) = caught.value.problems
    assert problem.path == expected["field"]
    assert problem.found
    assert problem.expected
    unknown, owned = "unknown" in path.stem, "owned" in path.stem
    assert problem.code == (
        Code.UNKNOWN_FIELD if unknown else Code.OWNED_PATH if owned else Code.INVALID_FIELD
    )


@pytest.mark.cluster
def test_refused_by_the_api_server(admin):
    wrong = []
    for path in FILES:
        obj, expected = read(path)
        model = KINDS[obj["kind"]]
        namespace = "/namespaces/default" if model.namespaced else ""
        url = f"/apis/vmtenancy.io/v1alpha1{namespace}/{model.plural}?fieldValidation=Strict&dryRun=All"
        answer = admin("POST", url, obj)
        missing = [text for text in expected.values() if text not in answer.message]
        if answer.code < 400 or missing:
            wrong.append(f"{path.stem}: {answer.code}: no {missing} in: {answer.message}")
    assert wrong == []
