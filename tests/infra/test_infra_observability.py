"""Alerts, dashboard and scraping use only metrics and labels that are exported."""

import json
import re
from typing import Any

import promql_parser
import pytest

from support.infra_files import INFRA, documents, find_object

FOLDER = INFRA / "observability"

# The exported metrics, with their labels in addition to recipe.
METRICS: dict[str, set[str]] = {
    "ray_camworker_images_total": {"status"},
    "ray_camworker_stage_seconds_total": {"stage"},
    "ray_camworker_read_bytes_total": set(),
    "ray_camworker_queue_depth": set(),
    "ray_camworker_gpu_busy_ratio": set(),
    "ray_camworker_shards_total": {"outcome"},
    "ray_camworker_shards_waiting": set(),
    "ray_camworker_workers": set(),
}
VALUES = {
    "outcome": {"done", "failed", "lost"},
    "stage": {"fetch_decode", "network", "boxes", "commit"},
    "status": {"ok"},
}
# The metrics of kube-state-metrics.
OTHERS = {"kube_cronjob_status_last_successful_time": {"cronjob"}}


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "dashboard.json").read_text())


def alerts() -> list[dict[str, Any]]:
    return [rule for group in documents(FOLDER / "alerts.yml")[0]["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    shown = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [*shown, *(rule["expr"] for rule in alerts())]


def selectors(expression: Any) -> list[Any]:
    """Return every metric selector of a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        return [expression]
    parts = [
        getattr(expression, name)
        for name in ("expr", "lhs", "rhs", "param", "vector_selector")
        if getattr(expression, name, None) is not None
    ]
    parts += getattr(expression, "args", None) or []
    return [selector for part in parts for selector in selectors(part)]


@pytest.mark.parametrize("expression", expressions())
def test_expression_uses_exported_metrics_and_labels(expression: str) -> None:
    used = selectors(promql_parser.parse(expression))
    assert used
    for selector in used:
        labels = METRICS.get(selector.name, set()) | {"recipe"}
        if selector.name not in METRICS:
            labels = OTHERS[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, f"{selector.name} has no label {matcher.name}"
            assert matcher.name not in VALUES or matcher.value in VALUES[matcher.name]
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        names = {name.strip() for name in grouped.split(",")}
        assert all(names <= METRICS[selector.name] | {"recipe"} for selector in used)


def test_counters_are_read_as_rates() -> None:
    """The exception is the counter of lost shards, where the first one matters."""
    for expression in expressions():
        for selector in selectors(promql_parser.parse(expression)):
            if selector.name.endswith("_total") and 'outcome="lost"' not in expression:
                assert re.search(rf"(rate|increase)\({selector.name}", expression)


def test_dashboard_shows_every_metric() -> None:
    shown = {
        selector.name
        for panel in dashboard()["panels"]
        for target in panel["targets"]
        for selector in selectors(promql_parser.parse(target["expr"]))
    }
    assert shown == set(METRICS)


def test_alerts_have_a_summary_and_an_action() -> None:
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert re.fullmatch(r"Camworker\w+", rule["alert"])
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert re.fullmatch(r"\d+m", rule.get("for", "0m"))
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


def test_nightly_alert_names_the_cron_job() -> None:
    (overdue,) = (rule for rule in alerts() if rule["alert"] == "CamworkerNightlyOverdue")
    assert f'cronjob="{find_object("CronJob")["metadata"]["name"]}"' in overdue["expr"]


def test_panels_do_not_overlap_and_variables_are_defined() -> None:
    content = dashboard()
    assert content["uid"] == "camworker"
    panels = content["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)), "panels overlap"
    assert max(x for x, _ in cells) == 23
    variables = {variable["name"] for variable in content["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)", json.dumps(panels)))
    assert used == variables == {"datasource", "recipe"}


def test_both_kinds_of_cluster_are_scraped() -> None:
    (content,) = documents(FOLDER / "prometheus.yml")
    assert content["rule_files"] == ["alerts.yml"]
    jobs = {job["job_name"]: job for job in content["scrape_configs"]}
    assert jobs["ray"]["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]
    (discovery,) = jobs["kuberay"]["kubernetes_sd_configs"]
    assert discovery["namespaces"]["names"] == [find_object("Namespace")["metadata"]["name"]]
    cluster = find_object("RayJob")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        ports = {
            port["name"]: port["containerPort"]
            for port in group["template"]["spec"]["containers"][0]["ports"]
        }
        assert ports["metrics"] == 8080
