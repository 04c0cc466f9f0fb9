"""One server that speaks S3 for all contract tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from tests.contract.stores import s3_server

    with s3_server() as (_, endpoint):
        yield endpoint
