"""The dashboards' files: what Grafana would refuse or show over each other, and alerts as Prometheus reads them."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.engine import grafana

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
PLAYED = ROOT / "tests" / "docs" / "alerts_test.yml"
EACH = pytest.mark.parametrize("board", grafana.BOARDS)
# What the metrics' contract asks for, and the alert that is there for it.
WANTED = {
    "no worker": "HotrefreshNoWorker",
    "oldest age": "HotrefreshQueueOld",
    "failure budget": "HotrefreshFailureBudget",
    "flip limit": "HotrefreshNegativeFlips",
    "gate inconclusive too long": "HotrefreshGateInconclusive",
    "lease expiry rate": "HotrefreshLeasesExpire",
    "stalled": "HotrefreshStalled",
    "rollback window closing": "HotrefreshRollbackWindowCloses",
}


@pytest.fixture
def promtool():
    """Runs promtool and returns what it says; skips where there is none."""
    path = shutil.which("promtool")
    if path is None:
        pytest.skip("promtool is not here: it comes with the package prometheus (apt-get install prometheus)")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def rules() -> list[dict]:
    return yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]


def test_there_are_dashboards_and_each_has_a_uid_and_a_title_of_its_own():
    assert set(grafana.BOARDS) == {"refreshes", "flips-and-gates", "serving-and-workers"}
    for key in ("uid", "title"):
        assert len({board[key] for board in grafana.BOARDS.values()}) == len(grafana.BOARDS)


@EACH
def test_a_dashboard_is_of_a_schema_that_grafana_reads_and_its_panels_have_numbers_of_their_own(board):
    document = grafana.BOARDS[board]
    assert document["schemaVersion"] >= 39
    assert "id" not in document, "a file has a uid; the id is the database's of one Grafana"
    ids = [panel["id"] for panel in document["panels"]]
    assert len(set(ids)) == len(ids)
    assert all(panel["title"] for panel in document["panels"])
    for panel in grafana.panels(board):
        names = [target["refId"] for target in panel["targets"]]
        assert names
        assert len(set(names)) == len(names), panel["title"]


@EACH
def test_no_panel_lies_on_another_or_beside_the_page(board):
    places = [(panel["title"], panel["gridPos"]) for panel in grafana.BOARDS[board]["panels"]]
    for title, at in places:
        assert at["x"] >= 0, title
        assert 0 < at["w"] <= 24 - at["x"], title
        assert at["h"] > 0, title
    for (one, a), (other, b) in itertools.combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, f"{one!r} and {other!r} lie on each other"


@EACH
def test_every_source_is_provisioned_and_asked_in_its_own_language(board):
    given = yaml.safe_load(
        (grafana.FOLDER / "provisioning" / "datasources" / "datasources.yml").read_text("utf-8")
    )
    kinds = {source["uid"]: source["type"] for source in given["datasources"]}
    for panel in grafana.panels(board):
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"], panel["title"]
            assert kinds[target["datasource"]["uid"]] == target["datasource"]["type"], panel["title"]
            assert ("expr" in target) == (target["datasource"]["type"] == "prometheus"), panel["title"]
    for variable in grafana.variables(board):
        assert kinds[variable["datasource"]["uid"]] == "postgres"


@EACH
def test_a_variable_is_there_before_it_is_asked_for_and_none_is_there_for_nothing(board):
    defined: list[str] = []
    for variable in grafana.variables(board):
        assert set(re.findall(r"\$(\w+)", variable["query"])) <= set(defined)
        assert variable["multi"], "a variable of one value is not quoted in SQL"
        defined.append(variable["name"])
    asked = [
        target.get("expr") or target["rawSql"]
        for panel in grafana.panels(board)
        for target in panel["targets"]
    ]
    asked += [variable["query"] for variable in grafana.variables(board)]
    used = {name for text in asked for name in re.findall(r"\$\{?(?!__)(\w+)", text)}
    assert used == set(defined)


@EACH
def test_queries_read_the_reporting_views_only(board):
    for title, text in grafana.queries(board):
        tables = re.findall(r"\b(?:FROM|JOIN) (?!LATERAL)([\w.]+)", text)
        assert tables, title
        assert all(table.startswith("reporting.") for table in tables), title


def test_every_alert_that_the_contract_asks_for_is_there():
    assert set(WANTED.values()) <= {rule["alert"] for rule in rules()}


def test_every_alert_says_how_bad_it_is_and_what_to_do():
    for rule in rules():
        assert rule["labels"]["severity"] in ("page", "warn"), rule["alert"]
        assert rule["annotations"]["summary"].strip(), rule["alert"]


def test_prometheus_reads_the_rules_and_each_alert_fires_when_it_should(promtool):
    assert f"{len(rules())} rules found" in promtool("check", "rules", ALERTS)
    promtool("test", "rules", PLAYED)
    promtool("check", "config", "--syntax-only", ROOT / "deploy" / "prometheus" / "prometheus.yml")


def test_prometheus_reads_every_expression_of_the_dashboards(promtool, tmp_path):
    values = {"gallery": ["pics", "texts"], "rollout": ["1"], "queryset": ["asked"]}
    found = [
        {"record": f"panel:{number}", "expr": grafana.as_promql(text, values)}
        for number, (_, text) in enumerate(grafana.expressions())
    ]
    path = tmp_path / "panels.yml"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": found}]}))
    assert f"{len(found)} rules found" in promtool("check", "rules", path)
    assert len(found) > 20


def test_a_recall_curve_is_drawn_for_each_query_set_by_itself():
    """Of two that were chosen at once the higher value would stand for both."""
    drawn = [
        panel for board in grafana.BOARDS for panel in grafana.panels(board)
        for target in panel["targets"] if "reporting.refresh_curve" in target.get("rawSql", "")
    ]  # fmt: skip
    assert drawn
    for panel in drawn:
        assert panel["repeat"] == "queryset", panel["title"]
        assert all("queryset IN ($queryset)" in target["rawSql"] for target in panel["targets"])
