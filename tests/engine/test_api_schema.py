"""What /openapi.json promises, asked with thousands of requests made from it: right ones, wrong ones, and strangers."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from tests.engine import platform
from tests.engine.api_server import TOKEN, client_of

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
OPEN = {"/livez", "/readyz"}
EXAMPLES, MANY_EXAMPLES = 25, 1000
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.negative_data_rejection,
    openapi_checks.positive_data_acceptance,
]
UNREFUSED = [each for each in CHECKS if each is not openapi_checks.negative_data_rejection]
# Of the header as it should be: other schemes, more or less of the token, more than one, other bytes.
STRANGERS = (
    {},
    {"Authorization": ""},
    {"Authorization": "Bearer"},
    {"Authorization": "Bearer "},
    {"Authorization": f"Bearer {TOKEN}x"},
    {"Authorization": f"Bearer {TOKEN[:-1]}"},
    {"Authorization": f"Bearer  {TOKEN}"},
    {"Authorization": f"bearer {TOKEN}"},
    {"Authorization": f"Basic {base64.b64encode(f'x:{TOKEN}'.encode()).decode()}"},
    {"Authorization": TOKEN},
    {"Authorization": f"Bearer {TOKEN}, Bearer {TOKEN}"},
    {"Authorization": b"Bearer \xff\xfe"},
    {"X-Authorization": f"Bearer {TOKEN}"},
    {"Proxy-Authorization": f"Bearer {TOKEN}"},
    {"Cookie": f"Authorization=Bearer {TOKEN}"},
)


def picture(number: int) -> bytes:
    file = io.BytesIO()
    shape = (platform.EDGE, platform.EDGE)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, shape).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(number) for number in range(3)]
# Formats that the document names and no generator knows: what is no picture is refused, which the tests of the API see.
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(each).decode() for each in PICTURES]))
schemathesis.openapi.format("binary", st.sampled_from(PICTURES))


@pytest.fixture
def client(context, tmp_path):
    platform.embedded_gallery(context, tmp_path)
    with client_of(context) as opened:
        yield opened


def narrowed(document):
    """The document with what only this ledger knows: the names of its galleries, of its items, and of their attributes."""
    document = copy.deepcopy(document)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "gallery":
                    assert path.startswith("/search/")
                    parameter["schema"] = {"type": "string", "enum": ["pics"]}

    def narrow(part):
        if isinstance(part, dict):
            if "propertyNames" in part:
                part["propertyNames"] = {"enum": ["label"]}
                part["maxProperties"] = 1
            if part.get("required") == ["key"]:
                part["properties"]["key"]["enum"] = ["class-00/0.png", "class-07/3.png", "no/such.png"]
            for each in part.values():
                narrow(each)
        elif isinstance(part, list):
            for each in part:
                narrow(each)

    narrow(document)
    return document


def to_be_refused(case, form_schema) -> bool:
    """Whether a made-up request that is said to be wrong is so. Of a form it may be right: a list without entries is no part of
    it, and a null that stands for an object may be allowed.
    """
    form = case.media_type == "multipart/form-data" and isinstance(case.body, dict)
    if not form or case.path_parameters.get("gallery") != "pics":
        return True
    parts = {name: "" if isinstance(part, bytes) else part for name, part in case.body.items() if part != []}
    return not jsonschema.Draft202012Validator(form_schema).is_valid(parts)


def ask_everything(client, examples, number):
    """Every operation with right and with wrong data; how often each status was answered."""
    document = client.get("/openapi.json").json()
    upload = document["paths"]["/search/{gallery}/image"]["post"]["requestBody"]
    form = upload["content"]["multipart/form-data"]["schema"]
    schema = schemathesis.openapi.from_dict(narrowed(document))
    answered: Counter = Counter()
    limits = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    with requests.Session() as session:

        def ask(case):
            answer = case.call(base_url=str(client.base_url), headers=HEADERS, session=session)
            answered[case.operation.path, answer.status_code] += 1
            case.validate_response(answer, checks=CHECKS if to_be_refused(case, form) else UNREFUSED)

        for operation in (result.ok() for result in schema.get_all_operations()):
            modes = [GenerationMode.POSITIVE]
            if operation.body or operation.path_parameters:  # else nothing of it can be wrong
                modes.append(GenerationMode.NEGATIVE)
            for mode in modes:
                seed(number)(limits(given(operation.as_strategy(generation_mode=mode))(ask)))()
    return answered


def test_the_document_in_the_docs_is_that_of_the_server(client):
    """`python -m orchestrator.api.openapi > docs/openapi.json` writes it anew."""
    assert json.loads(COMMITTED.read_text()) == client.get("/openapi.json").json()


def test_right_and_wrong_requests_are_answered_as_the_document_says(client):
    answered = ask_everything(client, EXAMPLES, 1)
    assert not [status for _, status in answered if status >= 500]
    for path in ("/search/{gallery}", "/search/{gallery}/image", "/search/{gallery}/batch"):
        # Nothing is proved by a server that refuses everything.
        assert answered[path, 200] > 0
        assert answered[path, 400] > 0


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_many_right_and_wrong_requests_are_answered_as_the_document_says(client):
    answered = ask_everything(client, MANY_EXAMPLES, 2)
    assert not [status for _, status in answered if status >= 500]
    print(sorted(answered.items()))


def test_nothing_but_health_is_read_without_the_token(client):
    document = client.get("/openapi.json").json()
    secrets = ("class-", "kin", '"old"', "hotrefresh_", "openapi", "file://")
    asked = [
        (method.upper(), path.format(gallery="pics", rollout_id=1))
        for path, operations in document["paths"].items()
        for method in operations
    ]
    assert {path for _, path in asked} >= OPEN | {"/metrics", "/galleries", "/search/pics/batch"}
    asked += [("HEAD", path) for method, path in asked if method == "GET"]
    odd = "/openapi.json /docs /redoc /nothing /livez/ //livez /livez/../galleries /%6Civez%2F..%2Fgalleries"
    asked += [("GET", path) for path in odd.split()]
    body = {"key": "class-04/0.png", "queries": [{"key": "class-04/0.png"}]}
    for method, path in asked:
        for headers in STRANGERS:
            status, text = raw(client, method, path, headers, body)
            if path in OPEN:
                assert status == 200
                assert text in ("", '{"status":"ok"}', '{"status":"ready"}')
            else:
                assert status == 401, (method, path, headers)
            assert not any(secret in text for secret in secrets)


def raw(client, method, path, headers, body):
    """A request that no well-behaved client would send, paths and headers as they are; its status and its body."""
    connection = HTTPConnection(client.base_url.host, client.base_url.port, timeout=30)
    try:
        connection.request(method, path, json.dumps(body) if method == "POST" else None, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
