"""Charts through the real Helm; its limits through stand-ins that misbehave."""

import time
from pathlib import Path

import pytest

from vmtenancy.errors import Code, VmtError
from vmtenancy.helm import Chart, find_helm, render_chart
from vmtenancy.testing import build

CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}
  namespace: {{ .Release.Namespace }}
data:
  on: {{ .Values.enabled | quote }}
  since: 2026-01-02
  kube: {{ .Capabilities.KubeVersion.Version | quote }}
---
{{- if .Values.second }}
apiVersion: v1
kind: Secret
metadata: {name: second}
{{- end }}
"""
SCHEMA = (
    '{"properties": {"enabled": {"type": "boolean"}, "deep": {"items": {"additionalProperties": false}}}}'
)


@pytest.fixture
def chart(tmp_path: Path) -> Path:
    folder = tmp_path / "chart"
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 1.0.0\n")
    (folder / "values.yaml").write_text("enabled: true\nsecond: false\n")
    (folder / "values.schema.json").write_text(SCHEMA)
    (folder / "templates" / "objects.yaml").write_text(CONFIG_MAP)
    return folder


def program(folder: Path, script: str) -> Path:
    path = folder / "helm"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="session")
def helm() -> Path:
    return build.resolve("helm")


@pytest.mark.cluster
def test_objects_come_back_parsed(chart: Path, helm: Path) -> None:
    objects = render_chart(chart, "lab", "vc-lab", {"second": True}, helm=helm, kube_version="v1.36.3")
    assert [o["kind"] for o in objects] == ["Secret", "ConfigMap"]
    # As the API server reads YAML: "on" is a boolean, and a key is a name; no dates.
    assert objects[1]["metadata"] == {"name": "lab", "namespace": "vc-lab"}
    assert objects[1]["data"] == {"true": "true", "since": "2026-01-02", "kube": "v1.36.3"}


@pytest.mark.cluster
def test_values_that_the_schema_refuses_are_named(chart: Path, helm: Path) -> None:
    with pytest.raises(VmtError) as caught:
        render_chart(chart, "lab", "vc-lab", {"enabled": "yes", "deep": [{}, {"x": 1}]}, helm=helm)
    found = {p.path: p.message for p in caught.value.problems}
    assert found == {
        "values.enabled": "got string, want boolean",
        "values.deep[1]": "additional properties 'x' not allowed",
    }
    assert caught.value.code is Code.HELM


@pytest.mark.cluster
def test_a_template_that_fails_gives_helms_own_words(chart: Path, helm: Path) -> None:
    (chart / "templates" / "no.yaml").write_text('{{ fail "two secrets at once" }}')
    with pytest.raises(VmtError, match="two secrets at once"):
        render_chart(chart, "lab", "vc-lab", {}, helm=helm)


@pytest.mark.cluster
def test_output_that_is_no_object_is_refused(chart: Path, helm: Path) -> None:
    (chart / "templates" / "list.yaml").write_text("kind: ConfigMap\nmetadata: {name: a}\n")
    with pytest.raises(VmtError, match="no Kubernetes object"):
        render_chart(chart, "lab", "vc-lab", {}, helm=helm)


@pytest.mark.cluster
def test_the_same_values_are_rendered_once(chart: Path, helm: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    counting = program(tmp_path, f'echo call >>{calls}; exec {helm} "$@"')
    opened = Chart(chart, helm=counting)
    first = opened.render("lab", "vc-lab", {"second": True})
    first[0]["metadata"]["name"] = "changed by the caller"
    assert opened.render("lab", "vc-lab", {"second": True})[0]["metadata"]["name"] == "second"
    assert opened.render("lab", "vc-lab", {}) != opened.render("other", "vc-lab", {})
    assert calls.read_text().split() == ["call"] * 3


def test_a_changed_chart_has_another_digest(chart: Path, tmp_path: Path) -> None:
    helm = program(tmp_path, "exit 1")
    before = Chart(chart, helm=helm)
    assert Chart(chart, helm=helm).digest == before.digest
    (chart / "values.yaml").write_text("enabled: false\n")
    after = Chart(chart, helm=helm)
    assert after.digest != before.digest
    assert after.key("lab", "vc-lab", {}) != before.key("lab", "vc-lab", {})


def test_helm_missing_is_said(chart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VMTENANCY_HELM", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VmtError, match=r"VMT-H001: no Helm .*VMTENANCY_HELM"):
        render_chart(chart, "lab", "vc-lab", {})


def test_helm_is_found_by_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helm = program(tmp_path, "exit 0")
    monkeypatch.setenv("VMTENANCY_HELM", str(helm))
    assert find_helm() == helm


def test_chart_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(VmtError, match=r"no chart there \(found .*Chart\.yaml"):
        render_chart(tmp_path, "lab", "vc-lab", {}, helm=program(tmp_path, "exit 0"))


@pytest.mark.parametrize("name", ["", "--post-renderer", "Lab", "a" * 54, "a.b", "-a"])
def test_a_release_that_is_no_label_never_reaches_helm(chart: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(VmtError, match="release has no valid name"):
        render_chart(chart, name, "vc-lab", {}, helm=program(tmp_path, "touch called"))
    assert not list(tmp_path.rglob("called"))


def test_time_is_limited(chart: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(VmtError, match=r"too long .*found more than 0\.2 s"):
        render_chart(chart, "lab", "vc-lab", {}, helm=program(tmp_path, "exec sleep 60"), timeout_s=0.2)
    assert time.monotonic() - started < 10


def test_output_is_limited(chart: Path, tmp_path: Path) -> None:
    helm = program(tmp_path, "exec yes")
    with pytest.raises(VmtError, match=r"too much \(found more than 1000 bytes"):
        render_chart(chart, "lab", "vc-lab", {}, helm=helm, max_output_bytes=1000)


def test_output_that_is_no_yaml_is_said(chart: Path, tmp_path: Path) -> None:
    with pytest.raises(VmtError, match="renders no YAML"):
        render_chart(chart, "lab", "vc-lab", {}, helm=program(tmp_path, "echo '{'"))
