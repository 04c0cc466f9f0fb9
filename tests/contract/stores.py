"""The stores that the contract is run over: a folder, fsspec's memory, and a server that speaks S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3
import fsspec
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "gallery-store"


@dataclass
class Place:
    """A root of one kind, and a way to hurt what is stored behind our back."""

    root: str

    def raw(self, url: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """A client of the test's own; one that fsspec kept may point at a server that is gone."""
        return fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)

    def names(self, url: str) -> list[str]:
        """Every object below a URL, by its last part."""
        filesystem, path = self.raw(url)
        return sorted(found.rpartition("/")[2] for found in filesystem.find(path))

    def change(self, url: str, name: str, change) -> None:
        """Replace a stored object's bytes by what `change` makes of them."""
        filesystem, path = self.raw(f"{url}/{name}")
        data = change(bytearray(filesystem.cat_file(path)))
        filesystem.pipe_file(path, bytes(data))

    def remove(self, url: str, name: str) -> None:
        filesystem, path = self.raw(f"{url}/{name}")
        filesystem.rm_file(path)


@contextmanager
def s3_server(port: int = 0) -> Iterator[tuple[ThreadedMotoServer, str]]:
    """A server that speaks S3 on a loopback port, a free one unless told, with one bucket, and its URL."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        with pytest.MonkeyPatch.context() as monkeypatch:
            point_at(monkeypatch, endpoint)
            boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
        yield server, endpoint
    finally:
        server.stop()


def point_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Make the environment name an endpoint and credentials."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "for-tests",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)


def place_of(kind: str, request: pytest.FixtureRequest) -> Place:
    """An empty root of one kind."""
    unique = uuid.uuid4().hex
    if kind == "s3":
        point_at(request.getfixturevalue("monkeypatch"), request.getfixturevalue("s3_endpoint"))
        return Place(f"s3://{BUCKET}/{unique}")
    if kind == "memory":
        return Place(f"memory://{unique}")
    return Place(str(request.getfixturevalue("tmp_path") / "root"))
