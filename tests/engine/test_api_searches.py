"""The forms of a search: by a vector, with attributes, as an upload, several at once; and what is taken at most."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from models.datasets import read_item
from models.datasets.folder import uri_of
from orchestrator.api.tokens import tokens_of
from orchestrator.ledger.queries import models as model_queries
from orchestrator.service import advance, rollouts
from orchestrator.serving.batching import QueryBatcher
from tests.engine import platform
from tests.engine.api_server import TOKEN, client_of, until

KEY = "class-04/0.png"


@pytest.fixture
def world(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    return context


@pytest.fixture
def client(world):
    with client_of(world) as opened:
        yield opened


def with_settings(context, **changed):
    context.settings = context.settings.model_copy(update=changed)
    return context


def search(client, **asked):
    return client.post("/search/pics", json={"k": 3, **asked})


def encoder_of(context, name):
    with context.engine.connect() as connection:
        return context.encoder(model_queries.model_by_name(connection, name))


def vector_of(context, name, path):
    encoder = encoder_of(context, name)
    return encoder.encode([encoder.preprocess(read_item(uri_of(path)))])[0]


def test_a_vector_finds_what_its_picture_finds_whatever_its_length(world, client, tmp_path):
    vector = vector_of(world, "old", tmp_path / "pictures" / KEY)
    by_key = search(client, key=KEY).json()
    for length in (1.0, 1e-200, 1e200):
        found = search(client, vector=[float(x) * length for x in vector]).json()
        assert [hit["key"] for hit in found["hits"]] == [hit["key"] for hit in by_key["hits"]]
        assert found["hits"][0]["score"] == pytest.approx(by_key["hits"][0]["score"], abs=1e-5)


def test_a_vector_of_another_model_or_dimension_is_refused(world, client, tmp_path):
    vector = vector_of(world, "old", tmp_path / "pictures" / KEY).tolist()
    assert search(client, vector=vector, model="old").status_code == 200
    for asked in ({"vector": vector, "model": "kin"}, {"vector": vector[1:]}, {"vector": [1.0]}):
        refused = search(client, **asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    for wrong in ([0.0] * 32, [], ["1"] * 32, [True] * 32, [[1.0] * 32], "1", {"0": 1}):
        assert search(client, vector=wrong).status_code == 400
    for number in ("NaN", "Infinity", "1e999"):
        body = json.dumps({"vector": [*vector[1:], 7.5]}).replace("7.5", number)
        assert client.post("/search/pics", content=body).status_code == 400


def test_only_items_with_the_attributes_are_found(client):
    one = search(client, key=KEY, k=1000, where={"label": "class-07"}).json()["hits"]
    assert [hit["label"] for hit in one] == ["class-07"] * platform.PER_CLASS
    two = search(client, key=KEY, k=1000, where={"label": ["class-07", "class-08"]}).json()["hits"]
    assert {hit["label"] for hit in two} == {"class-07", "class-08"}
    assert search(client, key=KEY, where={"label": "nothing"}).json()["hits"] == []
    refused = search(client, key=KEY, where={"colour": "red"})
    assert refused.status_code == 400
    assert "label" in refused.json()["error"]["message"]
    for wrong in (
        {},
        {"label": []},
        {"label": 7},
        {"label": ["a", None]},
        [],
        "label=a",
        {"label": {"a": 1}},
    ):
        assert search(client, key=KEY, where=wrong).status_code == 400


def test_a_picture_can_be_uploaded(client, tmp_path):
    content = (tmp_path / "pictures" / KEY).read_bytes()
    options = {"k": "1", "where": '{"label": ["class-04"]}'}
    found = client.post("/search/pics/image", files={"file": ("a.png", content)}, data=options).json()
    assert [hit["key"] for hit in found["hits"]] == [KEY]
    sent = {"image": base64.b64encode(content).decode(), "k": 1, "where": {"label": ["class-04"]}}
    assert client.post("/search/pics", json=sent).json() == found


NO_UPLOADS = (
    ({"file": ("a.png", b"no picture")}, {}),
    ({"file": ("a.png", b"")}, {}),
    ({"other": ("a.png", b"x")}, {}),
    ({"file": ("a.png", b"x")}, {"k": "many"}),
    ({"file": ("a.png", b"x")}, {"k": "0"}),
    ({"file": ("a.png", b"x")}, {"where": "label"}),
    ({"file": ("a.png", b"x")}, {"colour": "red"}),
    ({"file": ("a.png", b"x")}, {"k": ["1", "2"]}),
    ([("file", ("a.png", b"x")), ("file", ("b.png", b"x"))], {}),
)


def test_an_upload_that_is_none_is_refused(client):
    for files, data in NO_UPLOADS:
        refused = client.post("/search/pics/image", files=files, data=data)
        assert refused.status_code == 400, (files, data)
        assert set(refused.json()["error"]) == {"code", "message"}


def test_a_body_that_only_says_that_it_is_a_form_is_refused(client):
    for kind, body in (
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b; charset=nothing", b"--b--\r\n"),
        ("application/json", b'{"key": "a"}'),
        ("", b""),
    ):  # fmt: skip
        answer = client.post("/search/pics/image", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400, (kind, body)


def test_each_query_of_a_batch_is_answered_or_refused_on_its_own(world, client, tmp_path):
    picture = base64.b64encode((tmp_path / "pictures" / KEY).read_bytes()).decode()
    queries = [
        {"key": KEY},
        {"key": "nowhere.png"},
        {"image": picture},
        {"image": "!!"},
        {"image": base64.b64encode(b"no picture").decode()},
        {"text": "a bicycle"},
        {"vector": [1.0]},
        {"vector": vector_of(world, "old", tmp_path / "pictures" / KEY).tolist()},
    ]
    answer = client.post("/search/pics/batch", json={"queries": queries, "k": 2}).json()
    told = [
        each["error"]["code"] if "error" in each else each["hits"][0]["key"] for each in answer["answers"]
    ]
    assert told == [KEY, "not_found", KEY, "usage", "unsupported", "conflict", "conflict", KEY]
    alone = search(client, key=KEY, k=2).json()
    of_the_whole = ("schema_version", "gallery", "system")  # said once, not with each answer
    assert {name: answer[name] for name in of_the_whole} == {name: alone[name] for name in of_the_whole}
    each = {name: value for name, value in alone.items() if name not in of_the_whole}
    for hit in each["hits"]:  # what is encoded together is rounded otherwise
        hit["score"] = pytest.approx(hit["score"], abs=1e-5)
    assert answer["answers"][0] == each


def test_a_query_that_the_model_fails_on_fails_none_beside_it(world, client, monkeypatch):
    """The whole batch fails in the encoder; every query is then asked alone."""
    encoder = encoder_of(world, "old")
    whole = type(encoder).encode
    bad = [prepared_of(encoder, world, key) for key in ("class-01/0.png", "class-02/0.png")]

    def encode(self, prepared):
        if any(np.array_equal(one, bad[0]) for one in prepared):
            raise RuntimeError("planted")
        vectors = whole(self, prepared)
        vectors[[np.array_equal(one, bad[1]) for one in prepared]] = np.nan
        return vectors

    monkeypatch.setattr(type(encoder), "encode", encode)
    keys = ("class-00/0.png", "class-01/0.png", "class-02/0.png", "class-03/0.png")
    answers = client.post(
        "/search/pics/batch", json={"queries": [{"key": key} for key in keys], "k": 1}
    ).json()
    told = [
        each["error"]["code"] if "error" in each else each["hits"][0]["key"] for each in answers["answers"]
    ]
    assert told == [keys[0], "error", "not_finite", keys[3]]
    assert "planted" not in str(answers)


def prepared_of(encoder, context, key):
    """An item of the gallery as the encoder takes it."""
    from orchestrator.service.listings import item_uri

    return np.asarray(encoder.preprocess(read_item(item_uri(context, "pics", key))))


NO_BATCHES = (
    {},
    {"queries": []},
    {"queries": {}},
    {"queries": ["a"]},
    {"queries": [{"key": KEY}, {}]},
    {"queries": [{"key": KEY, "text": "a"}]},
    {"queries": [{"key": KEY, "k": 3}]},
    {"queries": [{"key": KEY}], "k": 0},
    {"queries": [{"key": KEY}], "limit": 3},
    {"queries": [{"key": KEY}] * 101},
)


def test_a_batch_that_is_none_is_refused_as_a_whole(client):
    for asked in NO_BATCHES:
        assert client.post("/search/pics/batch", json=asked).status_code == 400, asked


def test_vectors_do_not_depend_on_those_that_are_encoded_beside_them(world, tmp_path):
    encoder = encoder_of(world, "old")
    prepared = [
        encoder.preprocess(read_item(uri_of(path))) for path in sorted((tmp_path / "queries").rglob("*.png"))
    ]
    alone = np.stack([encoder.encode([one])[0] for one in prepared])
    batcher = QueryBatcher(encoder.encode, most=64, wait_s=0.05)
    with ThreadPoolExecutor(64) as pool:
        together = np.stack([each[0] for each in pool.map(lambda one: batcher.encode([one]), prepared)])
    assert np.abs(alone - together).max() < 1e-5


def test_a_query_that_was_encoded_before_a_swap_is_encoded_again(world, client, monkeypatch):
    """The model is switched while the old one is busy with the query: the answer is the new one's, with its vector."""
    old, begun, go = encoder_of(world, "old"), threading.Event(), threading.Event()
    whole = type(old).encode

    def encode(self, prepared):
        if self is old and not go.is_set():
            begun.set()
            assert go.wait(30)
        return whole(self, prepared)

    monkeypatch.setattr(type(old), "encode", encode)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(search, client, key="class-05/0.png")
        assert begun.wait(30)
        row = platform.start(world)
        advance.deploy(world, row.id)
        # By a vector: a query that must be encoded would wait behind the first one.
        until(lambda: search(client, vector=[1.0] * 32, model="kin").status_code == 200)
        go.set()
        found = answer.result().json()
    assert found == search(client, key="class-05/0.png").json()
    assert found["model"] == "kin"
    rollouts.rollback(world, row.id)


def test_the_new_models_encoder_is_loaded_before_it_serves_and_a_model_that_cannot_be_loaded_never_does(
    world, client, monkeypatch
):
    world._encoders.clear()
    load, loading, go = world.encoder, threading.Event(), threading.Event()
    search(client, key=KEY)  # the old one is there again

    def encoder(model):
        if model.name == "kin" and not go.is_set():
            loading.set()
            raise OSError("not now")
        return load(model)

    monkeypatch.setattr(world, "encoder", encoder)
    row = platform.start(world)
    advance.deploy(world, row.id)
    assert loading.wait(30)
    for _ in range(5):
        assert search(client, key=KEY).json()["model"] == "old"
    assert client.get("/readyz").json()["status"] == "degraded"
    go.set()
    until(lambda: search(client, key=KEY).json()["model"] == "kin")


def test_every_token_of_the_file_opens_and_the_log_names_it_and_never_shows_it(world, tmp_path, capfd):
    file = tmp_path / "tokens"
    file.write_text(f"web {TOKEN}\nnightly another-long-token\n")
    file.chmod(0o600)
    tokens = tokens_of(world.settings.model_copy(update={"api_token_file": file}))
    with client_of(world, tokens=tokens) as client:
        other = {"Authorization": "Bearer another-long-token"}
        assert client.get("/rollouts").status_code == 200
        assert client.get("/galleries", headers=other).status_code == 200
        assert (
            client.get("/galleries", headers={"Authorization": "Bearer neither-of-them"}).status_code == 401
        )
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    told = {(line["path"], line["token"]) for line in lines if line["event"] == "request.answered"}
    assert told == {("/rollouts", "web"), ("/galleries", "nightly"), ("/galleries", None)}
    assert TOKEN not in str(lines)
    assert "another-long-token" not in str(lines)


def test_a_client_that_asks_too_often_is_told_when_to_come_back(world):
    with_settings(world, api_rate_per_s=0.01, api_rate_burst=2)
    with client_of(world) as client:
        answers = [client.get("/galleries") for _ in range(3)]
        assert [each.status_code for each in answers] == [200, 200, 429]
        assert answers[2].json()["error"]["code"] == "too_many"
        assert 90 < int(answers[2].headers["Retry-After"]) <= 100
        assert client.get("/livez").status_code == client.get("/metrics").status_code == 200


def test_more_requests_at_once_than_there_may_be_are_told_to_come_back(world, monkeypatch):
    with_settings(world, api_requests_at_once=1)
    encoder, begun, go = encoder_of(world, "old"), threading.Event(), threading.Event()
    whole = type(encoder).encode

    def encode(self, prepared):
        begun.set()
        assert go.wait(30)
        return whole(self, prepared)

    with client_of(world) as client, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(type(encoder), "encode", encode)
        first = pool.submit(search, client, key=KEY)
        assert begun.wait(30)
        busy = client.get("/galleries")
        assert (busy.status_code, busy.json()["error"]["code"], busy.headers["Retry-After"]) == (
            503,
            "busy",
            "1",
        )
        assert client.get("/readyz").status_code == 200
        go.set()
        assert first.result().status_code == 200
        assert client.get("/galleries").status_code == 200


def test_what_is_no_id_is_no_rollouts(client):
    for name in ("x", "0", "-1", "1.5", "9" * 5000, "٣"):
        assert client.get(f"/rollouts/{name}").status_code == 404
    assert httpx.get(f"{client.base_url}/rollouts/x").status_code == 401
