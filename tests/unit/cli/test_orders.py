"""The orders that `--help` names."""

from __future__ import annotations

import re

import pytest

from cli.main import main
from cli.orders import order_names


def test_names_come_from_the_files_without_what_is_for_simulations_only(tmp_path):
    (tmp_path / "__init__.py").write_text("ORDERS = {}")
    (tmp_path / "base.py").write_text("class Order: ...")
    (tmp_path / "b.py").write_text("import torch\nORDER = Order(name='b', needs=frozenset())")
    (tmp_path / "a.py").write_text("ORDER = Order(name='a')")
    (tmp_path / "c.py").write_text("ORDER = Order(name='c', simulation_only='it knows the answer')")
    assert order_names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("verb", ["plan", "start"])
def test_the_help_of_a_rollout_names_every_order_that_it_may_use_and_no_other(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["rollout", verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert set(order_names()) <= set(re.findall(r"\w+", said))
    assert "oracle" not in re.findall(r"\w+", said)
