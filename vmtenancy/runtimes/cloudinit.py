"""First boot: public keys and the host name go into the cloud-config of a VirtualMachine."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.render.document import DocumentError, load_document
from vmtenancy.render.merge import merge
from vmtenancy.runtimes.base import Object

_KINDS: Final = ("cloudInitNoCloud", "cloudInitConfigDrive")
_HEADER: Final = "#cloud-config"
#: As the API has it for `publicKey`: type, base64, comment. Options before the type are not accepted.
_PUBLIC_KEY: Final = re.compile(r"(ssh-|ecdsa-|sk-)[-a-z0-9@.]+ [A-Za-z0-9+/=]+( [^\r\n]*)?")


def public_keys(secrets: Iterable[Object]) -> list[str]:
    """Return the public keys in `secrets`: each line of each value that is one, in order, once each.

    Raises `VmtError` (INVALID_FIELD) for a Secret that has none.
    """
    keys: dict[str, None] = {}
    for secret in secrets:
        found = [
            line.strip()
            for _, value in sorted((secret.get("data") or {}).items())
            for line in _decoded(value).splitlines()
            if _PUBLIC_KEY.fullmatch(line.strip())
        ]
        if not found:
            message = f"Secret {secret['metadata']['name']} has no public key"
            expected = "a value with lines as in authorized_keys"
            raise VmtError(Problem(Code.INVALID_FIELD, "spec.sshKeys", message, expected=expected))
        keys.update(dict.fromkeys(found))
    return list(keys)


def _decoded(value: str) -> str:
    return base64.b64decode(value).decode(errors="replace")


def with_keys(
    vmi: Mapping[str, Any], secret_name: str, keys: Sequence[str], hostname: str
) -> tuple[dict[str, Any], str]:
    """Return a VMI's spec whose cloud-init volume reads a Secret, and the user data for that Secret.

    The first cloud-init volume is used and its cloud-config kept; where there is none, one named `cloudinit` is
    added. Raises `VmtError` (INVALID_FIELD) where its user data is no cloud-config, so that keys can not be added.
    """
    volumes = list(vmi.get("volumes") or ())
    at, kind = next(
        ((index, kind) for index, volume in enumerate(volumes) for kind in _KINDS if kind in volume),
        (len(volumes), _KINDS[0]),
    )
    volume: dict[str, Any] = volumes[at] if at < len(volumes) else {"name": "cloudinit", kind: {}}
    config = _cloud_config(volume[kind])
    config.setdefault("hostname", hostname)
    config["ssh_authorized_keys"] = list(dict.fromkeys([*config.get("ssh_authorized_keys", ()), *keys]))
    user_data = f"{_HEADER}\n{yaml.safe_dump(config, sort_keys=False, width=1 << 20, allow_unicode=True)}"
    source = {key: value for key, value in volume[kind].items() if key != "userData"}
    changed = {**volume, kind: {**source, "secretRef": {"name": secret_name}}}
    attached = {"domain": {"devices": {"disks": [{"name": volume.get("name")}]}}}
    return merge({**vmi, "volumes": [*volumes[:at], changed, *volumes[at + 1 :]]}, attached), user_data


def _cloud_config(source: Any) -> dict[str, Any]:
    def refused(found: str) -> VmtError:
        message = "the keys can not be added to the machine's cloud-init user data"
        expected = f"userData in the volume, a mapping after the line {_HEADER}"
        return VmtError(Problem(Code.INVALID_FIELD, "spec.sshKeys", message, found, expected))

    text = source.get("userData", _HEADER) if isinstance(source, Mapping) else None
    if not isinstance(text, str) or {"secretRef", "userDataBase64"} & source.keys():
        raise refused("user data that is not in the volume")
    if text.partition("\n")[0].rstrip() != _HEADER:
        raise refused("another kind of user data")
    try:
        config = load_document(text)
    except DocumentError as error:
        raise refused(str(error)) from error
    config = {} if config is None else config
    if not isinstance(config, dict) or not isinstance(config.get("ssh_authorized_keys", []), list):
        raise refused("a cloud-config of another form")
    return config
