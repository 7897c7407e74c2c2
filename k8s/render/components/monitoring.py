"""Scraping, alerts and the dashboard."""

from __future__ import annotations

from k8s.render.components.component import Component
from k8s.render.components.scaling import FORMULA
from k8s.render.facts import Document, Facts, Files
from k8s.render.queries import EXAMPLE, quantile, selector
from tuneline.core.digests import short_digest

OBJECTIVES = {"TunelineTtft": "ttft_s", "TunelineTpot": "tpot_s", "TunelineLatency": "e2e_s"}
MEASURED = (*OBJECTIVES, "TunelineQueue")
"""The alerts whose limits come from a load report."""
WINDOW = "5m"
SCALED_INTERVAL_S = 5
"""Seconds between scrapes with `autoscaling`: the autoscaler learns of a load one scrape late."""


def fill_monitor(files: Files, facts: Facts) -> None:
    """Put the labels of the operator, its namespace and the interval of scrapes into the files."""
    monitor = files["service-monitor.yaml"]
    monitor["metadata"]["labels"] |= facts.config.monitoring_labels
    if facts.config.autoscaling is not None:
        (endpoint,) = monitor["spec"]["endpoints"]
        endpoint |= {"interval": f"{SCALED_INTERVAL_S}s", "scrapeTimeout": f"{SCALED_INTERVAL_S}s"}
    (rule,) = files["network-policy.yaml"]["spec"]["ingress"]
    (peer,) = rule["from"]
    labels = peer["namespaceSelector"]["matchLabels"]
    labels["kubernetes.io/metadata.name"] = facts.config.monitoring_namespace


def fill_alerts(files: Files, facts: Facts) -> None:
    """Put the run's labels, digest and measured limits into the alerts.

    Without a load report whose objectives hold, the alerts on latency and queue are left out. With
    `min_replicas: 0`, the alert on an absent server is left out.
    """
    item = files["rules.yaml"]
    item["metadata"].setdefault("labels", {}).update(facts.config.monitoring_labels)
    (group,) = item["spec"]["groups"]
    rules = {rule["alert"]: rule for rule in group["rules"]}
    group["name"] = facts.server
    where = selector(facts)
    for rule in rules.values():
        rule["expr"] = rule["expr"].replace(EXAMPLE, where)
    other = rules["TunelineOtherModel"]
    other["expr"] = other["expr"].replace("sha256:example", facts.model_digest)
    scaling = facts.config.autoscaling
    if scaling is not None and scaling.min_replicas == 0:
        # No pod is not a fault there.
        del rules["TunelineServerAbsent"]
    group["rules"] = [rule for name, rule in rules.items() if _measured(name, rule, facts)]


def _measured(name: str, rule: Document, facts: Facts) -> bool:
    """Put a measured limit into an alert; False if there is no such measurement."""
    if name not in MEASURED:
        return True
    capacity = facts.capacity
    if capacity is None:
        return False
    if name == "TunelineQueue":
        limit = capacity.queue_per_pod()
        query, _, _ = rule["expr"].rpartition(">")
        rule["expr"] = f"{query}> {limit.text}"
        rule["annotations"][FORMULA.replace("/", "_")] = limit.formula
        return True
    metric = OBJECTIVES[name]
    objective = capacity.objectives.get(metric)
    if objective is None:
        return False
    query = quantile(metric, objective.percentile, selector(facts), WINDOW)
    rule["expr"] = f"{query} > {objective.limit_s:g}"
    rule["annotations"][FORMULA.replace("/", "_")] = (
        f"the objective {metric} p{objective.percentile:g} of {capacity.origin}"
    )
    return True


def fill_dashboard(files: Files, facts: Facts) -> None:
    """Name the dashboard and its server."""
    board = files["dashboard.json"]
    # Grafana's limit of a uid is 40 characters; names of runs may be longer.
    board["uid"] = f"tuneline-{short_digest(facts.model_digest)}"
    board["title"] = f"Tuneline: {facts.name}"
    values = {"namespace": facts.config.namespace, "service": facts.server}
    for variable in board["templating"]["list"]:
        if variable["name"] in values:
            variable["query"] = values[variable["name"]]


COMPONENTS: dict[str, Component] = {
    "service-monitor": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="service-monitor",
        fill=fill_monitor,
    ),
    "alerts": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="alerts",
        fill=fill_alerts,
    ),
    "dashboard": Component(
        wanted=lambda config: config.monitoring_namespace is not None,
        folder="dashboard",
        fill=fill_dashboard,
    ),
}
