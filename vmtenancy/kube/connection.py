"""Where the cluster is and who we are: kubeconfig files, or the service account of a pod."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from kubernetes.aio import config as kube_config
from kubernetes.aio.client import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config.config_exception import ConfigException

from vmtenancy.kube import errors


async def load(configuration: Configuration, kubeconfig: Path | None, context: str | None) -> None:
    """Fill in `configuration`, also again when credentials have changed.

    From `kubeconfig`, else `$KUBECONFIG`, else the pod's service account, else `~/.kube/config`. Raises
    `KubeError` where that is not usable.
    """
    files = str(kubeconfig or os.environ.get("KUBECONFIG") or "")
    if not files and "KUBERNETES_SERVICE_HOST" in os.environ:
        _load_account(configuration)
    else:
        await _load_files(files or "~/.kube/config", context, configuration)
    # As Go programs do: no proxy for loopback addresses, whatever the environment says.
    host = urlsplit(configuration.host).hostname or ""
    local = host in ("localhost", "::1") or host.startswith("127.")
    configuration.client_session_kwargs = {"trust_env": not local}


def _load_account(configuration: Configuration) -> None:
    """Load the service account of this pod. Raises `KubeError`."""
    try:
        kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as error:
        raise errors.KubeError(f"no usable service account in this pod: {error}") from error


async def _load_files(files: str, context: str | None, configuration: Configuration) -> None:
    """Load kubeconfig files, separated as in PATH. Raises `KubeError`."""
    try:
        if not _any_file(files):
            raise FileNotFoundError("there is no such file")
        await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=files, context=context, client_configuration=configuration, persist_config=False
        )
        # Certificates and keys are only read here.
        RESTClientObject(configuration)
    except Exception as error:  # the loader raises whatever a file of the wrong shape leads to
        what = (
            f"{type(error).__name__}: {error}"
            if isinstance(error, (TypeError, AttributeError))
            else str(error)
        )
        raise errors.KubeError(
            f"no usable kubeconfig ({files}): {what}; give --kubeconfig or set KUBECONFIG"
        ) from error


def _any_file(files: str) -> bool:
    return any(Path(file).expanduser().is_file() for file in files.split(os.pathsep))
