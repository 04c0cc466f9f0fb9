"""Every query and every metric of the dashboards and alerts, against a real ledger and a real scrape of it."""

from __future__ import annotations

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import ProgrammingError

from orchestrator.ledger import database
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.service import advance, embed, finish, galleries
from tests.engine import grafana, platform
from tests.engine.api_server import client_of, until

# They alert only, so that a bad model comes to its end.
GATES = [
    {"measure": "negative_flip_rate", "limit": 0.02, "minimum_n": 100, "effect": "alert"},
    {"measure": "quarantine_rate", "limit": 0.5, "minimum_n": 1, "effect": "alert"},
]
ALERTS = grafana.FOLDER.parent / "prometheus" / "alerts.yml"
# Labels that Prometheus gives by itself.
SCRAPED = {"instance": "api:8080", "job": "hotrefresh"}


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"gate": GATES})


@pytest.fixture
def world(context, tmp_path):
    """What a dashboard has something to say of: one upgrade to its end, and one gallery half-way, throttled.

    The new model is bad, an item cannot be read any more, and a batch failed once.
    """
    platform.embedded_gallery(context, tmp_path)
    platform.register_network(context, tmp_path, "poor", seed=0, kept=4)  # four of 32 dimensions
    platform.certify_by_hand(context, "poor")
    (tmp_path / "pictures" / "class-05" / "1.png").write_bytes(b"no picture")
    row = platform.work(context, platform.start(context, "poor").id)
    assert row.quarantined_items == 1
    assert finish.finalize(context, row.id).state == "finalized"
    galleries.create_gallery(context, "later", str(platform.draw_pictures(tmp_path / "later", 2, seed=5)))
    later = advance.advance(context, embed.embed_gallery(context, "later", "old").id)
    with context.engine.begin() as connection:
        claim = batch_queries.claim_batch(connection, later.id, "host-1", 30.0)
        assert batch_queries.give_back(connection, claim, error="the encoder said no")
        worker_queries.register_worker(
            connection, worker_id="host-1", host="host", pid=1, device="cpu", version="1", interval_s=60.0
        )
        connection.exec_driver_sql(
            "UPDATE rollout SET throttle_reason = 'latency', throttle_value = 2, throttle_limit = 1, "
            f"throttled_at = clock_timestamp() WHERE id = {later.id}"
        )
    return context


def ask(engine, text, values):
    """The rows of a query, asked as Grafana does: by the dashboards' role, which sees the reporting views only."""
    with engine.connect() as connection:
        connection.exec_driver_sql("SET LOCAL ROLE hotrefresh_dashboard")
        connection.exec_driver_sql("SET LOCAL search_path = public")
        connection.exec_driver_sql("SET LOCAL statement_timeout = '2s'")
        result = connection.exec_driver_sql(
            grafana.as_sql(text, values), execution_options={"no_parameters": True}
        )
        return result.mappings().all()


def chosen(engine, board):
    """What a dashboard's variables hold when it is opened: all of them, or the first where not all can be chosen."""
    values: dict[str, list[str]] = {}
    for variable in grafana.variables(board):
        rows = ask(engine, variable["query"], values)
        found = [str(row.get("__value", next(iter(row.values())))) for row in rows]
        values[variable["name"]] = (found if variable["includeAll"] else found[:1]) or [""]
    return values


def scrape(context):
    """Every sample of a scrape: name and labels."""
    with client_of(context) as client:
        client.post("/search/pics", json={"key": "class-04/0.png"})
        until(lambda: 'lag_batches{gallery="pics"} 0' in client.get("/metrics").text)
        text = client.get("/metrics").text
    return [
        (sample.name, sample.labels | SCRAPED)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


@pytest.mark.parametrize("board", grafana.BOARDS)
def test_every_query_runs_on_an_empty_ledger_as_the_dashboards_role(empty_database, board):
    engine = database.open_engine(empty_database, pooled=False)
    database.upgrade(engine)
    values = chosen(engine, board)
    for title, text in grafana.queries(board):
        assert ask(engine, text, values) == [], title
    with pytest.raises(ProgrammingError, match="permission denied"):
        ask(engine, "SELECT * FROM hotrefresh.rollout", values)
    engine.dispose()


def test_every_query_finds_something_on_a_ledger_where_everything_happened(world):
    for board in grafana.BOARDS:
        values = chosen(world.engine, board)
        assert all(each != [""] for each in values.values()), values
        for title, text in grafana.queries(board):
            assert ask(world.engine, text, values), f"{board}: {title}"


def test_the_page_of_flips_and_the_gates_say_the_same_number(world):
    values = chosen(world.engine, "flips-and-gates")
    asked = dict(grafana.queries("flips-and-gates"))
    [slice_] = ask(world.engine, asked["Slices, the hardest hit first"], values)
    gates = ask(world.engine, asked["What each gate says"], values)
    [gate] = [each for each in gates if each["measure"] == "negative_flip_rate"]
    causes = ask(world.engine, asked["Negative flips that are open, by cause"], values)
    assert gate["value"] == slice_["nfr"] == slice_["negative_flips"] / 120 > 0
    assert (gate["result"], gate["limit"]) == ("fail", 0.02)
    assert sum(each["model"] for each in causes) == slice_["negative_flips"]
    assert sum(each["mixed_stage"] for each in causes) == 0


def test_every_metric_of_dashboards_and_alerts_is_in_a_scrape_with_the_labels_that_are_asked_for(world):
    samples = scrape(world)
    values = chosen(world.engine, "flips-and-gates")
    asked = [(where, grafana.as_promql(text, values)) for where, text in grafana.expressions()]
    rules = yaml.safe_load(ALERTS.read_text("utf-8"))["groups"][0]["rules"]
    asked += [(rule["alert"], rule["expr"]) for rule in rules]
    for where, text in asked:
        labels: set[str] = set()
        for name, matchers in grafana.selectors(text):
            found = [each for sample, each in samples if sample == name and grafana.matches(each, matchers)]
            assert found, f"{where}: no sample is {name} with {matchers}"
            labels |= set.intersection(*map(set, found))
        assert grafana.grouped_by(text) <= labels, f"{where}: groups by a label that is not there"
