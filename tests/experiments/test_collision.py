"""The study end to end on quick settings: predictions hold, wrong ones are caught, finished sweeps are kept."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bayesmem.design import ZOO
from bayesmem.experiments import collision
from bayesmem.experiments.collision_rules import Rule
from bayesmem.experiments.collision_sweeps import SWEEPS
from bayesmem.report import verdicts
from bayesmem.report.collision import PANELS
from bayesmem.report.collision_words import sections
from bayesmem.report.records import records_in
from bayesmem.tasks.associations import AssociationsConfig, make_associations
from bayesmem.tasks.changing import ChangingConfig, make_changing

QUICK = collision.quick(seed=1)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-m", "bayesmem.cli", "run", "collision", "--quick", "--seed", "1", "--out", str(out)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # as a user runs it
    assert "holds" in said and "fails" not in said
    return out


def test_every_claim_holds(study):
    found = verdicts.sweeps(records_in(study))
    assert tuple(found) == verdicts.SWEEPS == tuple(SWEEPS)
    rows = verdicts.verdicts(found)
    assert len(rows) == 8 and all(row.holds for row in rows), rows
    recorded = records_in(study).find("collision", "verdicts")
    assert recorded.figures == verdicts.as_figures(rows)


def test_points_are_simulations_of_their_own(study):
    """Same streams nowhere: the same rule over the same data would give the same number."""
    curves = [c for r in verdicts.sweeps(records_in(study)).values() for c in r.figures["curves"]]
    drawn = [p["simulated"] for c in curves if c["kind"] == "exact" and c["panel"] != "coverage" for p in c["points"]]
    assert len(set(drawn)) == len(drawn) > 500


def test_every_sweep_is_drawn_and_told(study):
    html = (study / "report.html").read_text()
    assert html.count("data:image/svg+xml;base64,") == 2 * len(SWEEPS) and html.count("<h3>") == len(SWEEPS)
    told = sections(verdicts.sweeps(records_in(study)))
    assert [section.name for section in told] == list(SWEEPS)
    assert "loses" in told[6].paragraphs[0]


def test_a_wrong_prediction_is_caught(study):
    found = verdicts.sweeps(records_in(study))
    off = json.loads(json.dumps(found["repeats"].figures))
    for curve in off["curves"]:
        for point in curve["points"]:
            point["predicted"] *= 1.1
    coverage, _, gains = verdicts.verdicts({"repeats": replace(found["repeats"], figures=off)})
    assert not coverage.holds and not gains.holds


def test_finished_sweeps_are_kept_and_missing_ones_run(study, tmp_path):
    whole = records_in(study).path.read_text().splitlines(keepends=True)
    records = records_in(tmp_path)
    records.path.write_text("".join(line for line in whole if '"name": "angle"' not in line))
    before = records.all()
    collision.run(QUICK, tmp_path)
    after = records.all()
    assert after[: len(before)] == before
    assert [r.name for r in after[len(before) :]] == ["angle", "verdicts"]
    assert after[-2].figures["curves"] == records_in(study).find("collision", "angle").figures["curves"]
    collision.run(QUICK, tmp_path)
    assert records.all() == after


def test_what_is_swept():
    curves = [(name, curve) for name, make in SWEEPS.items() for curve in make(QUICK)]
    for name, curve in curves:
        assert curve.rule in ZOO and curve.panel in PANELS[name]
        assert all(np.isfinite(curve.predict(x)) for x in curve.line)
    assert len({curve.rule for _, curve in curves}) == 11


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise_var": 0}, "noise_var is 0"),
        ({"precision": 2}, "precision is 2"),
        ({"least": 4}, "least is 4"),
        ({"writes_a": 0}, "writes_a is 0"),
        ({"cosine": 1.5}, "cosine is 1.5"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings(changes, said):
    with pytest.raises(ValueError, match=said):
        collision.CollisionRun(**changes)


def test_an_unknown_sweep(tmp_path):
    with pytest.raises(ValueError, match="no sweep nonsense; expected some of repeats"):
        collision.run(QUICK, tmp_path, ["nonsense"])


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (AssociationsConfig, {"associations": 0}, "associations is 0"),
        (AssociationsConfig, {"noise_var": -1}, "noise_var is -1"),
        (AssociationsConfig, {"seed": -1}, "seed is -1"),
        (ChangingConfig, {"tokens": 0}, "tokens is 0"),
        (ChangingConfig, {"walk_var": -1}, "walk_var is -1"),
        (ChangingConfig, {"decay": 1.5}, "decay is 1.5"),
    ],
)
def test_bad_tasks(config, changes, said):
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_tasks_are_pure_and_as_described():
    config = AssociationsConfig(key_dim=4, value_dim=3, associations=5, noise_var=0.0, rows=2)
    data, again = make_associations(config), make_associations(config)
    assert (data.k == again.k).all() and (data.v[:, :, 0] == data.values).all()
    assert np.allclose(data.k.norm(dim=-1), 1)
    still = make_changing(ChangingConfig(key_dim=3, value_dim=2, tokens=4, one_key=True, noise_var=0.0, rows=2))
    assert np.allclose(still.v[:, :, 0], still.clean[:, None])
    own = ChangingConfig(key_dim=3, value_dim=4000, tokens=6, decay=0.9, walk_var=0.19, noise_var=0.0, rows=2)
    assert np.allclose(make_changing(own).v.var(-1), 1, atol=0.1)  # stationary


def test_constant_gains_are_those_of_the_filter():
    assert Rule("deltanet", 0.25).beta(16) == pytest.approx(0.8)
    assert Rule("bayesian", 0.25, retention=0.0001).gains(3, 16) == pytest.approx([0.8] * 3, abs=1e-6)
