"""The arithmetic of `bench dtn`, and that its jobs are what they say. The trainings have tests of their own."""

import pytest

from bench import dtn
from bench.upgrades import norm_jobs
from bench.upgrades.norm_jobs import SIZES, jobs_of, needs, options_of
from models import recipes
from models.encoders import check_network
from models.errors import UsageError


def refresh(new_old):
    return {
        "new_old": new_old,
        "entropy": {"recall": [new_old, 0.5, 0.6], "nfr": [0.1, 0.2, 0.0]},
        "random": {"recall": [new_old, 0.4, 0.6], "nfr": [0.1, 0.3, 0.2]},
    }


def found(bare=0.3, lifted=0.45, **changes):
    result = {
        "old_old": 0.4, "new_new": 0.6, "bare": refresh(bare), "adapter": refresh(lifted),
        "train_seconds": 10.4, "embed_ms": 30.6, "parameters": 1234,
    }  # fmt: skip
    return result | changes


RESULTS = {
    ("glyphs", "small", "dtn"): [found(bare=0.35), found(bare=0.25)],
    ("glyphs", "small", "layer"): [found(), found(train_seconds=20.6)],
}


def test_the_tables_have_a_line_a_norm_in_the_order_of_the_recipes():
    text = dtn.markdown(RESULTS)
    assert text.startswith("### glyphs, small, 2 seeds\n\nM(old,old) = .400 ± .000.")
    tables = []
    for line in text.splitlines():
        if line.startswith("| new norm"):
            tables.append([])
        if line.startswith("| ") and "---" not in line:
            tables[-1].append(line.strip("| ").split(" | "))
    models, bare, lifted = (
        {line[0]: dict(zip(each[0], line, strict=True)) for line in each[1:]} for each in tables
    )
    assert [list(each) for each in (models, bare, lifted)] == 3 * [["layer", "dtn"]]
    assert list(models["layer"].values())[1:] == [".600 ± .000", "16", "31", "1,234"]
    assert bare["dtn"]["M(new,old)"].startswith(".300 ± .6")
    assert list(bare["layer"].values())[1:] == [
        ".300 ± .000", "−.100 ± .000", ".100 ± .000", ".100 ± .000", ".200 ± .000", ".200 ± .000",
    ]  # fmt: skip
    assert lifted["dtn"]["lowest − M(old,old)"] == ".050 ± .000"


def test_a_row_names_the_upgrade_and_the_old_system():
    row = dtn.rows(RESULTS)[0]
    assert row.name.startswith("glyphs small: layer norm to dtn, bare, M(new,old) .300")
    assert (row.value, row.ratio) == (0.3, 0.75)
    assert row.against.startswith("M(old,old) .400")
    assert row.holds is None
    assert [row.value for row in dtn.rows(RESULTS)] == [0.3, 0.45, 0.3, 0.45]


def test_every_new_model_waits_for_the_old_one_of_its_seed(tmp_path):
    jobs = jobs_of(tmp_path, "glyphs", "small", [0, 1])
    assert [job.part for job in jobs[:5]] == ["old", *(f"new-{norm}" for norm in recipes.NORMS)]
    assert needs(jobs[0]) == []
    assert needs(jobs[7]) == [jobs[5]]
    assert len({job.folder for job in jobs}) == 10


@pytest.mark.parametrize("data", ["glyphs", "emoji"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_only_the_norm_differs_between_the_new_models(data, size):
    every = {norm: options_of(data, size, network) for norm, network in recipes.NORMS.items()}
    for norm, options in every.items():
        check_network(options.architecture, options.network, options.dim, options.preprocessing)
        own = recipes.NORMS[norm]
        assert {k: v for k, v in options.network.items() if k not in own} == every["layer"].network
        assert {**vars(options), "network": None} == {**vars(every["layer"]), "network": None}
    assert "norm" not in options_of(data, size).network
    assert options_of(data, size).epochs == size.old_epochs * (10 if data == "emoji" else 1)


@pytest.mark.parametrize("part", ["faces/small", "glyphs", "glyphs/huge"])
def test_a_part_that_is_not_there_is_named_with_those_that_are(tmp_path, part):
    with pytest.raises(UsageError, match=r"glyphs/small.*cost"):
        dtn.run(only=[part], folder=tmp_path)


def test_the_cost_is_measured_without_a_training(tmp_path, monkeypatch):
    monkeypatch.setattr(norm_jobs, "do", lambda job: pytest.fail("trained"))
    monkeypatch.setattr(dtn, "_BATCH", 1)
    document = dtn.run(only=["cost"], folder=tmp_path)
    assert [row["name"].split(",")[0] for row in document["rows"]] == [
        "dtn",
        "dtn",
        "dtn_var",
        "dtn published",
    ]
    assert all(row["value"] > 0 for row in document["rows"])
    assert "29.5 M multiply-adds more" in document["rows"][0]["against"]
