"""The agent's client: what it makes of a kubeconfig, tokens, and errors."""

from __future__ import annotations

import base64
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from gpunode_server import GpuNodeServer

from vmtenancy.agent.publisher import Publisher
from vmtenancy.kube import errors
from vmtenancy.kube.plain import PlainClient, connection
from vmtenancy.testing.pki import Authority


def test_tokens_are_read_anew(server: GpuNodeServer, kubeconfig: Path) -> None:
    publisher = Publisher(PlainClient(connection(kubeconfig)), "node-1")
    assert publisher.published() is None
    (kubeconfig.parent / "token").write_text("second")
    publisher.published()
    assert server.tokens == ["first", "second"]


def test_errors_are_those_of_the_other_client(server: GpuNodeServer, kubeconfig: Path) -> None:
    client = PlainClient(connection(kubeconfig))
    server.refuse = 403
    with pytest.raises(errors.ForbiddenError, match="VMT-K001: GET /x: refused"):
        client.get("/x")
    server.refuse = 500
    with pytest.raises(errors.UnknownOutcomeError):
        client.create("/x", {}, "me")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        kubeconfig.write_text(
            kubeconfig.read_text().replace(server.url, f"https://127.0.0.1:{free.getsockname()[1]}")
        )
        with pytest.raises(errors.UnavailableError, match="refused"):
            PlainClient(connection(kubeconfig)).get("/x")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "contexts: []", "{contexts: [{name: c}], current-context: c}", "contexts: [", "a: \x00"],
)
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(errors.KubeError, match="no usable kubeconfig"):
        connection(path)


def changed(path: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    """The kubeconfig with other fields of its cluster and user."""
    config = yaml.safe_load(path.read_text())
    config["clusters"][0]["cluster"] |= cluster or {}
    config["users"][0]["user"] |= user or {}
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize(
    ("cluster", "user", "said"),
    [
        ({}, {"as": "admin", "as-groups": ["system:masters"]}, "its user has as, as-groups, which"),
        ({}, {"username": "a", "password": "b"}, "its user has password, username, which"),
        ({}, {"exec": {"command": "c"}}, "its user has exec, which"),
        (
            {},
            {"client-certificate-data": "YQ==", "client-key": "key"},
            "its user needs client-certificate and",
        ),
        ({"proxy-url": "http://proxy"}, {}, "its cluster has proxy-url, which"),
        ({"tls-server-name": "k8s"}, {}, "its cluster has tls-server-name, which"),
        ({"server": "http://127.0.0.1:1"}, {}, "its user has tokenFile, and its server is http://"),
        ({"server": "127.0.0.1:1"}, {}, "its server is not https://HOST:PORT"),
        ({"server": "https://me:word@127.0.0.1:1"}, {}, "its server is not https://HOST:PORT"),
    ],
)
def test_what_a_kubeconfig_says_is_done_or_refused(
    kubeconfig: Path, cluster: dict[str, Any], user: dict[str, Any], said: str
) -> None:
    with pytest.raises(errors.KubeError, match=re.escape(said)):
        connection(changed(kubeconfig, cluster, user))


def test_fields_that_say_nothing_are_no_harm(server: GpuNodeServer, kubeconfig: Path) -> None:
    quiet = {"as": "", "as-groups": [], "exec": None, "extensions": [{"name": "e", "extension": {}}]}
    client = PlainClient(connection(changed(kubeconfig, {"disable-compression": True}, quiet)))
    server.stored = {"kind": "GpuNode"}
    assert client.get("/x") == server.stored
    without = changed(kubeconfig, {"server": "http://127.0.0.1:1"}, {"tokenFile": ""})
    assert connection(without).token_file is None


def test_only_the_authority_that_is_named_is_trusted(server: GpuNodeServer, kubeconfig: Path) -> None:
    trusted = [one["subject"] for one in connection(kubeconfig).tls.get_ca_certs()]
    assert trusted == [((("commonName", "authority"),),)]
    other = Authority(kubeconfig.parent / "other", "other").cert
    with pytest.raises(errors.UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        PlainClient(connection(changed(kubeconfig, {"certificate-authority": str(other)}))).get("/x")
    inline = base64.b64encode(server.authority.read_bytes()).decode()
    both = connection(changed(kubeconfig, {"certificate-authority-data": inline}))
    assert [one["subject"] for one in both.tls.get_ca_certs()] == trusted, "what is inline goes first"
