"""The API server as one user sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmtenancy.testing.controlplane import ControlPlane


@dataclass(frozen=True)
class Answer:
    """What the API server said: the object, or the status that says why not."""

    code: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        return self.body.get("message", "")


class Caller:
    """Sends requests as one user, and returns refusals instead of raising them. A `token` says who it is instead."""

    def __init__(self, cluster: ControlPlane, user: str, *groups: str, token: str = "") -> None:
        from kubernetes import client, config

        configuration = client.Configuration()
        config.load_kube_config(str(cluster.kubeconfig_for(user, groups)), client_configuration=configuration)
        configuration.proxy = None
        if token:
            configuration.cert_file = configuration.key_file = None
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = client.ApiClient(configuration)
        self._url = cluster.url

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Answer:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        headers |= self._headers
        answer = self._client.call_api(method, self._url + path, headers, body)
        return Answer(answer.status, json.loads(answer.read()))
