"""The files under deploy/ and docker-compose.yml: what would break in use, without an engine to run them."""

from __future__ import annotations

import configparser
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from prometheus_client.core import Metric

from cli.main import main
from orchestrator import __version__
from orchestrator.api import metrics
from orchestrator.api.server import GRACE_S
from orchestrator.api.timings import BatchTimings
from orchestrator.api.traffic_metrics import traffic_metrics
from orchestrator.settings import Settings
from tests.engine import grafana

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
YAML = [ROOT / "docker-compose.yml", *sorted(DEPLOY.rglob("*.y*ml"))]
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
KUBERNETES = DEPLOY / "kubernetes"
KNOWN = {f"HOTREFRESH_{name.upper()}" for name in Settings.model_fields}


def documents(path: Path) -> list[dict]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_file_can_be_read(path):
    assert documents(path)


def commands() -> list[list[str]]:
    """Every hotrefresh command that a file runs."""
    found = [
        service["command"]
        for service in documents(ROOT / "docker-compose.yml")[0]["services"].values()
        if service.get("build") == "."
    ]
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for document in documents(path):
            template = (
                document.get("spec", {}).get("template", {}) if isinstance(document.get("spec"), dict) else {}
            )
            found += [c["args"] for c in template.get("spec", {}).get("containers", ())]
    for unit in UNITS:
        line = re.search(r"^ExecStart=\S*/hotrefresh (.*)$", unit.read_text(), re.MULTILINE)
        assert line is not None, unit
        found.append(line[1].split())
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_and_its_options_exist(command, capsys):
    words = [word for word in command if not word.startswith("-") and not re.fullmatch(r"[\d.]+", word)]
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    for option in (word for word in command if word.startswith("--")):
        assert option in said


@pytest.mark.parametrize("path", [*YAML, *UNITS, *DEPLOY.rglob("*.example")], ids=lambda path: path.name)
def test_every_variable_of_ours_is_a_setting_and_no_secret_has_a_default(path):
    text = path.read_text()
    assert set(re.findall(r"HOTREFRESH_[A-Z_]+", text)) <= KNOWN
    assert not re.search(r"\$\{[A-Z_]*(PASSWORD|TOKEN)[A-Z_]*(:?-)", text), "a secret with a default"
    assert not re.search(r"(?i)(password|token)\s*[:=]\s*['\"]?[a-z0-9]{6,}['\"]?\s*$", text, re.MULTILINE)


def test_every_image_is_pinned():
    images = re.findall(r"image: (\S+)", "".join(path.read_text() for path in YAML))
    assert images
    images += re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert not [image for image in images if not re.search(r":v?\d+\.\d+", image)]
    ours = {image for image in images if image.startswith("hotrefresh")}
    assert {image.rpartition(":")[2] for image in ours} == {__version__}


def exported() -> set[str]:
    """Names of the metrics that the API gives, with the suffixes that Prometheus adds."""
    families: list[Metric] = [
        *metrics.rollout_metrics([], datetime.now(UTC)),
        *metrics.queue_metrics([]),
        metrics.lease_metric([]),
        metrics.window_metric([]),
        *metrics.worker_metrics([]),
        *metrics.coverage_metrics([]),
        *metrics.flip_metrics([], []),
        *metrics.gate_metrics([]),
        *metrics.churn_metrics([], []),
        metrics.lag_metric({}),
        *traffic_metrics({}, {}, {}),
        metrics.age_metric({}),
        metrics.snapshot_metric({}),
        metrics.refused_metric({}),
        BatchTimings().family(),
    ]
    suffix = {"counter": "_total", "info": "_info", "histogram": "_bucket"}
    names = {family.name + suffix.get(family.type, "") for family in families}
    names |= {"hotrefresh_search_duration_seconds_bucket", "hotrefresh_build_info"}
    parts = [name.removesuffix("bucket") for name in names if name.endswith("_bucket")]
    return names | {part + end for part in parts for end in ("sum", "count")}


def test_alerts_and_dashboards_ask_for_metrics_that_there_are():
    rules = documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"][0]["rules"]
    asked = [rule["expr"] for rule in rules] + [text for _, text in grafana.expressions()]
    names = {name for text in asked for name in re.findall(r"hotrefresh_\w+", text)}
    assert names
    assert names <= exported()
    assert len(rules) >= 8


def test_every_alert_is_played_through():
    rules = documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"][0]["rules"]
    played = documents(ROOT / "tests" / "docs" / "alerts_test.yml")[0]["tests"]
    fires = {a["alertname"] for test in played for a in test["alert_rule_test"] if a["exp_alerts"]}
    assert fires == {rule["alert"] for rule in rules}


def test_an_alert_that_compares_two_outcomes_leaves_the_outcome_out():
    """Two vectors are matched by all their labels: with `outcome` in them such an alert would never fire."""
    for rule in documents(DEPLOY / "prometheus" / "alerts.yml")[0]["groups"][0]["rules"]:
        outcomes = re.findall(r'(max by \(rollout\) \()?increase\([^)]*outcome="(\w+)"', rule["expr"])
        if len(outcomes) > 1:
            assert all(kept for kept, _ in outcomes), rule["alert"]


def test_every_resource_that_is_named_is_there_and_no_overlay_contains_its_base():
    files = sorted(KUBERNETES.rglob("kustomization.yaml"))
    assert len(files) == 3
    for path in files:
        for resource in documents(path)[0]["resources"]:
            named = (path.parent / resource).resolve()
            assert named.exists(), resource
            assert not path.is_relative_to(named), f"{path}: kustomize refuses a base around its overlay"


def test_what_pods_take_their_environment_from_is_made_by_a_manifest():
    made, wanted = set(), set()
    for path in KUBERNETES.rglob("*.yaml"):
        for document in documents(path):
            if document["kind"] in ("ConfigMap", "Secret"):
                made.add((document["kind"], document["metadata"]["name"]))
            for source in re.findall(
                r"\{'(configMapRef|secretRef)': \{'name': '([\w-]+)'\}\}", str(document)
            ):
                wanted.add(("ConfigMap" if source[0] == "configMapRef" else "Secret", source[1]))
    assert wanted
    assert wanted == made


def test_the_template_of_secrets_holds_none():
    for document in documents(KUBERNETES / "secrets.template.yaml"):
        assert set(document["stringData"].values()) == {""}


def test_every_file_that_a_service_mounts_is_there():
    services = documents(ROOT / "docker-compose.yml")[0]["services"]
    mounted = [v.split(":")[0] for s in services.values() for v in s.get("volumes", ()) if v.startswith("./")]
    assert mounted
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_an_image_can_use_the_store_that_the_manifests_name():
    store = documents(KUBERNETES / "base" / "namespace.yaml")[1]["data"]["HOTREFRESH_STORE_DIR"]
    assert store.startswith("s3://")
    assert re.search(r"^ARG EXTRAS=.*\bs3\b", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_ports_agree():
    compose = documents(ROOT / "docker-compose.yml")[0]["services"]
    port = compose["api"]["command"][-1]
    assert compose["api"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"][0]["static_configs"][0][
        "targets"
    ] == [f"api:{port}"]
    api = documents(KUBERNETES / "base" / "api.yaml")
    assert str(api[0]["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"]) == port
    assert str(api[1]["spec"]["ports"][0]["port"]) == port


def test_the_compose_file_brings_up_what_it_says():
    services = documents(ROOT / "docker-compose.yml")[0]["services"]
    assert {"postgres", "valkey", "migrate", "worker", "api", "prometheus", "grafana"} <= set(services)
    assert services["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_stop_in_time_and_have_few_rights(unit):
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    parser.read(unit)
    service = parser["Service"]
    assert float(service["TimeoutStopSec"]) >= Settings().lease_s
    assert (service["NoNewPrivileges"], service["ProtectSystem"]) == ("yes", "strict")
    assert float(service["TimeoutStopSec"]) > GRACE_S
    assert service["KillSignal"] == "SIGTERM"
    assert service["Restart"] == "on-failure"
    assert int(parser["Unit"]["StartLimitBurst"]) < 10


def test_pods_have_few_rights_and_time_to_finish():
    for name in ("base/worker.yaml", "base/api.yaml", "migrate/job.yaml"):
        spec = documents(KUBERNETES / name)[0]["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        [container] = spec["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "requests" in container["resources"]
    worker = documents(KUBERNETES / "base" / "worker.yaml")[0]["spec"]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] > Settings().lease_s
