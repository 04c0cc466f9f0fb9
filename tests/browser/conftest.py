"""A headless Chromium of the system, and dashboards for it to look at; without a Chromium these tests are skipped."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from orchestrator.bootstrap import open_context
from orchestrator.context import Context
from orchestrator.settings import Settings
from tests.browser import world
from tests.browser.window import Window
from tests.conftest import _administer
from tests.engine.dashboard_server import TOKEN, dashboard_url

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
MISSING = (
    "no Chromium here: `make browser` (as root on Debian or Ubuntu) or `apt-get install chromium` installs one; "
    "CHROMIUM=/path/to/chrome names another"
)
# Only the dashboard's own address is found; sandboxes need rights that root in a container lacks; /dev/shm is small there.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Served:
    """A dashboard's address, and its ledger."""

    url: str
    context: Context


def chromium_path() -> str | None:
    """Where the system's browser is."""
    named = os.environ.get("CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """One browser for all files of this folder; every test has windows of its own in it."""
    path = chromium_path()
    if path is None:
        pytest.skip(MISSING)
    from playwright.sync_api import expect, sync_playwright

    # Pages look again every 2 or 5 s: the default of 5 s is less than one look. It is for what never comes, no measurement.
    expect.set_options(timeout=30_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def usual(chromium: Browser) -> Iterator[Window]:
    """The window that most tests share: a new one costs more than most of them."""
    opened = Window(chromium, "")
    yield opened
    opened.close()


@pytest.fixture
def look(usual: Window) -> Iterator[Callable[[Served], Window]]:
    """Turns the usual window to a dashboard; at the end it may have seen no fault that the test did not expect."""

    def at(served: Served) -> Window:
        usual.turn_to(served.url)
        return usual

    yield at
    assert usual.unexpected() == []


@pytest.fixture
def window(chromium: Browser) -> Iterator[Callable[..., Window]]:
    """Opens a window of one's own, with options of Playwright's contexts; it is watched as the usual one is."""
    opened: list[Window] = []

    def open_window(served: Served, **options: object) -> Window:
        opened.append(Window(chromium, served.url, **options))
        return opened[-1]

    yield open_window
    for each in opened:
        each.close()
    assert [fault for each in opened for fault in each.unexpected()] == []


@dataclass(frozen=True)
class Built:
    """A ledger as it was built, to be copied; nobody is connected to it."""

    settings: Settings
    database: str


@pytest.fixture(scope="package")
def built(servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """`tests.browser.world`, built once."""
    folder = tmp_path_factory.mktemp("browser-world")
    made = Built(
        Settings(
            database_url=f"{servers.database_url.rsplit('/', 1)[0]}/browser_world",
            broker_url=servers.broker_url,
            data_dir=folder / "data",
            lease_s=2.0,
            heartbeat_s=0.3,
            batch_size=16,
            **world.SETTINGS,
        ),
        "browser_world",
    )
    _administer(servers.database_url, f"CREATE DATABASE browser_world TEMPLATE {migrated_template}")
    with open_context(made.settings) as context:
        world.build(context, folder)
    yield made
    _administer(servers.database_url, "DROP DATABASE browser_world WITH (FORCE)")


@contextmanager
def _copy_of(built: Built, folder: Path) -> Iterator[Context]:
    url, _, _ = built.settings.database_url.rpartition("/")
    name = f"browser_world_{next(_numbers)}"
    _administer(f"{url}/postgres", f"CREATE DATABASE {name} TEMPLATE {built.database}")
    shutil.copytree(built.settings.data_dir, folder / "data")
    try:
        with open_context(
            built.settings.model_copy(update={"database_url": f"{url}/{name}", "data_dir": folder / "data"})
        ) as context:
            yield context
    finally:
        _administer(f"{url}/postgres", f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="package")
def shown(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A dashboard that tests only look at."""
    with _copy_of(built, tmp_path_factory.mktemp("shown")) as context, dashboard_url(context) as url:
        yield Served(url, context)


@pytest.fixture
def own(built: Built, tmp_path: Path) -> Iterator[Served]:
    """A dashboard that a test may change."""
    with _copy_of(built, tmp_path) as context, dashboard_url(context) as url:
        yield Served(url, context)


@pytest.fixture(scope="package")
def locked(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A dashboard that asks for a token, and that tests only look at."""
    with _copy_of(built, tmp_path_factory.mktemp("locked")) as context, dashboard_url(context, TOKEN) as url:
        yield Served(url, context)
