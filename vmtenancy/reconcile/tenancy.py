"""Tenants and what describes the fleet: namespaces with their label, and the status of the cluster-scoped kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from vmtenancy.api.cohort import Cohort, PoolQuota
from vmtenancy.api.gpuclass import PARTS_PER_GPU, GpuClass
from vmtenancy.api.gpupool import GpuPool
from vmtenancy.api.names import PROBE_PREFIX, SYSTEM_NAMESPACE, TENANT_LABEL, VIRTUAL_CLUSTER_LABEL
from vmtenancy.api.tenant import Tenant
from vmtenancy.core.explain.shortage import counted, named
from vmtenancy.core.fleet.arrays import Fleet
from vmtenancy.core.quota.tree import QuotaTree
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.reconcile.charges import (
    charges,
    fair_shares,
    gpus_text,
    over_use,
    pool_sums,
    share_text,
    with_charges,
)
from vmtenancy.reconcile.status import Condition, status_steps
from vmtenancy.reconcile.steps import NEVER, Apply, Chain, Object, Replace
from vmtenancy.reconcile.view import View, by_name
from vmtenancy.reconcile.world import is_deleting, labels_of, ref_of

#: Reasons of a condition by the code of the problem behind it.
_REASONS = {Code.COHORT_CYCLE: "CohortCycle", Code.UNKNOWN_REFERENCE: "CohortNotFound"}


def tenancy_chains(view: View, fleet: Fleet, tree: QuotaTree) -> list[Chain]:
    """Namespaces to label, and every status of tenants, cohorts, pools and classes that is not right."""
    owners = namespace_owners(view)
    chains = _namespaces(view, owners)
    chains += _tenants(view, tree, owners)
    chains += _cohorts(view, tree)
    chains += _pools(view, fleet)
    chains += _classes(view)
    return chains


def is_reserved(namespace: str) -> bool:
    """Namespaces of the cluster itself: pods there must never wait for a grant."""
    return namespace.startswith("kube-") or namespace in ("kube", "kubevirt", "cdi", SYSTEM_NAMESPACE)


def namespace_owners(view: View) -> dict[str, str]:
    """The tenant of each namespace that tenants name: the one whose label it has, else the one created first."""
    owners: dict[str, str] = {}
    tenants = [obj for obj in view.world.of("Tenant") if not is_deleting(obj)]
    for obj in sorted(tenants, key=lambda o: (o["metadata"]["creationTimestamp"], o["metadata"]["name"])):
        tenant = view.parsed(obj, Tenant)
        if isinstance(tenant, VmtError):
            continue
        for namespace in tenant.spec.namespaces:
            home = view.world.get("Namespace", "", namespace)
            if is_reserved(namespace) or (home and VIRTUAL_CLUSTER_LABEL in labels_of(home)):
                continue
            if namespace not in owners or view.tenant_of(namespace) == tenant.metadata.name:
                owners[namespace] = tenant.metadata.name
    return owners


def _namespaces(view: View, owners: dict[str, str]) -> list[Chain]:
    chains = []
    for namespace, tenant in sorted(owners.items()):
        home = view.world.get("Namespace", "", namespace)
        if home is not None and (is_deleting(home) or labels_of(home).get(TENANT_LABEL) == tenant):
            continue
        if home is not None and _in_use(view, namespace):
            continue  # the grants in it are charged to the tenant that it has now
        version = home["metadata"]["resourceVersion"] if home else NEVER
        obj = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {TENANT_LABEL: tenant}, "resourceVersion": version},
        }
        chains.append(Chain(f"give namespace {namespace} to tenant {tenant}", (Apply(obj),)))
    for home in by_name(view.world.of("Namespace")):
        name, labels = home["metadata"]["name"], labels_of(home)
        if is_stray(home, owners) and not is_deleting(home) and not _in_use(view, name):
            left = {key: value for key, value in labels.items() if key != TENANT_LABEL}
            wanted = {**home, "metadata": {**home["metadata"], "labels": left}}
            chains.append(Chain(f"take namespace {name} from its tenant", (Replace(wanted),)))
    return chains


def is_stray(home: Object, owners: Mapping[str, str]) -> bool:
    """Whether a namespace has the label of a tenant that does not name it; those of `install` are its own."""
    labels, name = labels_of(home), home["metadata"]["name"]
    made = VIRTUAL_CLUSTER_LABEL in labels or name.startswith(PROBE_PREFIX)
    return TENANT_LABEL in labels and not made and name not in owners


def _in_use(view: View, namespace: str) -> bool:
    return any(grant.owner_namespace == namespace for grant in view.live)


def _tenants(view: View, tree: QuotaTree, owners: dict[str, str]) -> list[Chain]:
    usage = charges(view)
    with with_charges(tree, usage):
        shares, over = fair_shares(tree, usage), over_use(tree, usage)
    chains: list[Chain] = []
    for obj in by_name(view.world.of("Tenant")):
        tenant = view.parsed(obj, Tenant)
        if isinstance(tenant, VmtError):
            chains += _report(view, obj, {}, _invalid(tenant))
            continue
        name = tenant.metadata.name
        rows = []
        for quota in tenant.spec.quota:
            parts = usage.get((name, quota.pool), 0)
            borrowed = max(0, parts - quota.nominal * PARTS_PER_GPU)
            rows.append(
                {
                    "pool": quota.pool,
                    "allocated": gpus_text(parts),
                    "nominal": quota.nominal,
                    "borrowed": gpus_text(borrowed),
                }
            )
        share = share_text(shares.get(name, 0.0))
        ready = _tenant_ready(view, tenant, tree, owners)
        above = _over_quota(over.get(name, ()))
        fields = {"usage": rows, "resources": _resources_used(tree, name, usage), "fairShare": share}
        chains += _report(view, obj, fields, ready, above)
    return chains


def _over_quota(over: Iterable[tuple[str, int, str]]) -> Condition:
    above = [
        f"{named(column)}: {counted(amount, column)} more than {binds} allows"
        for column, amount, binds in over
    ]
    if not above:
        return Condition("OverQuota", False, "WithinQuota")
    message = f"{'; '.join(above)}; nothing is stopped for it alone, others take back what is theirs"
    return Condition("OverQuota", True, "QuotaLowered", message, event=True, warning=True)


def _resources_used(
    tree: QuotaTree, tenant: str, usage: Mapping[tuple[str, str], int]
) -> list[dict[str, str]]:
    return [
        {
            "name": resource.label,
            "used": resource.text(used),
            "nominal": resource.text(nominal),
            "borrowed": resource.text(max(0, used - nominal)),
        }
        for resource in tree.limited(tenant)
        for used, nominal in ((usage.get((tenant, resource), 0), tree.nominal(tenant, resource)),)
    ]


def _tenant_ready(view: View, tenant: Tenant, tree: QuotaTree, owners: dict[str, str]) -> Condition:
    name = tenant.metadata.name
    pools, classes = view.all_of(GpuPool), view.all_of(GpuClass)

    def bad(reason: str, message: str) -> Condition:
        return Condition("Ready", False, reason, message, event=True, warning=True)

    for namespace in tenant.spec.namespaces:
        if is_reserved(namespace):
            return bad("NamespaceReserved", f"namespace {namespace} is the cluster's own")
        home = view.world.get("Namespace", "", namespace)
        if home and VIRTUAL_CLUSTER_LABEL in labels_of(home):
            return bad("NamespaceTaken", f"namespace {namespace} belongs to a virtual cluster")
        if (other := owners.get(namespace, name)) != name:
            return bad("NamespaceTaken", f"namespace {namespace} belongs to tenant {other}")
        if (other := view.tenant_of(namespace)) not in ("", name):
            return bad("NamespaceTaken", f"namespace {namespace} still has grants of tenant {other}")
    if strange := _strange_pool(tenant.spec.quota, pools):
        return strange
    for i, quota in enumerate(tenant.spec.quota):
        for j, limit in enumerate(quota.classes):
            if limit.name not in classes or classes[limit.name].spec.pool != quota.pool:
                here = [n for n, cls in classes.items() if cls.spec.pool == quota.pool]
                path, kind = f"spec.quota[{i}].classes[{j}].name", f"GpuClass of pool {quota.pool}"
                return bad("ClassNotFound", _unknown(path, kind, limit.name, here))
    if problem := tree.tenant_problems.get(name):
        return bad(_REASONS.get(problem.code, "QuotaInvalid"), str(problem))
    return Condition("Ready", True, "Ready", f"namespaces {', '.join(tenant.spec.namespaces)}")


def _strange_pool(quota: Sequence[PoolQuota], pools: Iterable[str]) -> Condition | None:
    for i, each in enumerate(quota):
        if each.pool not in pools:
            message = _unknown(f"spec.quota[{i}].pool", "GpuPool", each.pool, pools)
            return Condition("Ready", False, "PoolNotFound", message, event=True, warning=True)
    return None


def _unknown(path: str, kind: str, name: str, known: Iterable[str]) -> str:
    expected = f"one of {', '.join(sorted(known)) or 'none'}"
    return str(Problem(Code.UNKNOWN_REFERENCE, path, f"no such {kind}", name, expected))


def _cohorts(view: View, tree: QuotaTree) -> list[Chain]:
    chains: list[Chain] = []
    for obj in by_name(view.world.of("Cohort")):
        cohort = view.parsed(obj, Cohort)
        if isinstance(cohort, VmtError):
            ready = _invalid(cohort)
        elif problem := tree.cohort_problems.get(cohort.metadata.name):
            reason = "ParentNotFound" if problem.code is Code.UNKNOWN_REFERENCE else "CohortCycle"
            ready = Condition("Ready", False, reason, str(problem), event=True, warning=True)
        else:
            strange = _strange_pool(cohort.spec.quota, view.all_of(GpuPool))
            ready = strange or Condition("Ready", True, "Ready")
        chains += _report(view, obj, {}, ready)
    return chains


def _pools(view: View, fleet: Fleet) -> list[Chain]:
    granted = pool_sums(charges(view))
    chains: list[Chain] = []
    for obj in by_name(view.world.of("GpuPool")):
        pool = view.parsed(obj, GpuPool)
        if isinstance(pool, VmtError):
            chains += _report(view, obj, {}, _invalid(pool))
            continue
        totals = fleet.totals(pool.metadata.name)
        if totals.gpus:
            ready = Condition("Ready", True, "Ready", f"{totals.gpus} GPUs match")
        else:
            ready = Condition(
                "Ready", False, "NoGpus", "no GPU matches the selector", event=True, warning=True
            )
        fields = {
            "gpus": totals.gpus,
            "allocatable": totals.allocatable,
            "allocated": gpus_text(granted.get(pool.metadata.name, 0)),
        }
        chains += _report(view, obj, fields, ready)
    return chains


def _classes(view: View) -> list[Chain]:
    pools = view.all_of(GpuPool)
    chains: list[Chain] = []
    for obj in by_name(view.world.of("GpuClass")):
        cls = view.parsed(obj, GpuClass)
        if isinstance(cls, VmtError):
            ready = _invalid(cls)
        elif cls.spec.pool not in pools:
            message = _unknown("spec.pool", "GpuPool", cls.spec.pool, pools)
            ready = Condition("Ready", False, "PoolNotFound", message, event=True, warning=True)
        else:
            ready = Condition("Ready", True, "Ready")
        chains += _report(view, obj, {}, ready)
    return chains


def _invalid(error: VmtError) -> Condition:
    return Condition("Ready", False, "Invalid", str(error), event=True, warning=True)


def _report(
    view: View, obj: Object, fields: dict[str, object], ready: Condition, *others: Condition
) -> list[Chain]:
    if is_deleting(obj):
        return []
    generation = int(obj["metadata"]["generation"])
    steps = status_steps(obj, fields, [ready, *others], generation=generation, now=view.now)
    return [Chain(f"report {ref_of(obj)}: {ready.reason}", steps)] if steps else []
