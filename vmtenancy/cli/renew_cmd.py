"""`vmtenancy renew`: the lease of a GpuVM or VirtualCluster counts from now."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from vmtenancy.cli.common import Context, Kubeconfig, with_client
from vmtenancy.cli.get import kind_of

if TYPE_CHECKING:
    from vmtenancy.kube.client import Client
    from vmtenancy.reconcile.steps import Object


def renew(
    target: Annotated[str, typer.Argument(help="gpuvm/NAME or virtualcluster/NAME.")],
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Its namespace.")] = "default",
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Have a lease count from now, up to what the tenant allows; what was stopped since it had ended starts again.

    Sets `spec.lease.renewedAt`, and needs no other right than to patch the object.
    """
    from vmtenancy.reconcile.status import timestamp
    from vmtenancy.reconcile.world import ref_of

    kind, slash, name = target.partition("/")
    if not slash or not name or (kind := kind_of(kind)) == "Pod":
        raise typer.BadParameter(f"found {target!r}; expected gpuvm/NAME or virtualcluster/NAME")
    now = timestamp(time.time())

    async def write(client: Client) -> Object:
        from vmtenancy.kube.client import path_of
        from vmtenancy.reconcile.kinds import KINDS

        patch = {"spec": {"lease": {"renewedAt": now}}}
        path = path_of(KINDS[kind], namespace, name)
        return await client.request("PATCH", path, body=patch, content_type="application/merge-patch+json")

    written = with_client(write, kubeconfig, context)
    lease = (written.get("status") or {}).get("lease")
    was = f"it was to end at {lease['expiresAt']}" if lease else "none has begun so far"
    typer.echo(f"the lease of {ref_of(written)} counts from {now}; {was}")
