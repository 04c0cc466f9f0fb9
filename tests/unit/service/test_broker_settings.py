"""The doctor names every setting of the broker that is off, with the value it has and the one it should have."""

from __future__ import annotations

import pytest

from orchestrator.broker import make_app, settings_for
from orchestrator.service.broker_settings import check_settings

URLS = ("redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//")
OPTIONS = "broker_transport_options"
LOOKS_THE_SAME = {"worker_pool": "prefork", "broker_connection_max_retries": 3, "result_backend": "rpc://"}


def off(value):
    """Some other value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return 0
    return ["pickle"] if isinstance(value, list) else "pickle"


SINGLE = [
    (url, name, LOOKS_THE_SAME.get(name, off(value)))
    for url in URLS
    for name, value in settings_for(url).items()
    if name != OPTIONS
]
NESTED = [(url, name, off(value)) for url in URLS for name, value in settings_for(url)[OPTIONS].items()]


@pytest.mark.parametrize("url", URLS)
def test_our_application_is_as_measured(url):
    assert check_settings(make_app(url)) == []


@pytest.mark.parametrize(("url", "name", "wrong"), SINGLE)
def test_a_setting_that_is_off_is_named(url, name, wrong):
    app = make_app(url)
    setattr(app.conf, name, wrong)
    (sentence,) = check_settings(app)
    assert sentence.startswith(f"{name} is ")
    assert repr(wrong) in sentence
    assert " and should be " in sentence


@pytest.mark.parametrize(("url", "name", "wrong"), NESTED)
@pytest.mark.parametrize("gone", [False, True])
def test_an_option_of_the_transport_that_is_off_or_missing_is_named(url, name, wrong, gone):
    app = make_app(url)
    options = dict(app.conf[OPTIONS]) | {name: wrong}
    if gone:
        del options[name]
    app.conf[OPTIONS] = options
    (sentence,) = check_settings(app)
    assert sentence.startswith(f"{name} is {None if gone else wrong!r}")


def test_the_visibility_may_be_longer_but_never_shorter_than_a_task():
    app = make_app(URLS[0])
    for seconds, sentences in ((86_400, 0), (1_800, 1), (60, 1)):
        app.conf[OPTIONS] = {**app.conf[OPTIONS], "visibility_timeout": seconds}
        assert len(check_settings(app)) == sentences


@pytest.mark.parametrize("url", URLS)
def test_a_pool_of_one_is_as_good_as_threads(url):
    app = make_app(url)
    app.conf.worker_pool = "solo"
    assert check_settings(app) == []


def test_a_missing_queue_and_one_without_priorities_are_named():
    app = make_app(URLS[1])
    app.conf.task_queues[2].max_priority = None
    assert check_settings(app) == ["x-max-priority of hotrefresh.gpu is None and should be 9"]
    app.conf.task_queues = app.conf.task_queues[:2]
    (sentence,) = check_settings(app)
    assert sentence.startswith("task_queues is ['hotrefresh.control', 'hotrefresh.cpu']")
