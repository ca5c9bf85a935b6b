"""The language study's tables, sentences and picture say what its records say."""

import copy

import pytest

from bayesmem.experiments.language_config import EXPERIMENT, Job, Recipe, Sweep
from bayesmem.experiments.language_models import MATCHED, MODELS
from bayesmem.report import language, language_data
from bayesmem.report.records import Records

TEXT = {"train": "a", "held_out": "b"}
BINS = [(0, 64), (64, 128), (128, 256)]
FITTED = {"head": [64, 128], "state_per_layer": 65536, "state_of_base": 1.0, "intermediate_size": 1024}
NATURAL = FITTED | {"head": [64, 64], "state_per_layer": 32768, "state_of_base": 0.5}


class Made:
    """Records made up."""

    def __init__(self, path):
        self.records = Records(path)

    def add(self, model, bits, *, matched="state", rate=2e-3, seed=0, recipe=None, **more):
        job = Job(model=model, matched=matched, learning_rate=rate, seed=seed, recipe=recipe or Recipe(), text=TEXT)
        held = NATURAL if matched == "parameters" else FITTED
        held = NATURAL | {"state_per_layer": 65536, "state_of_base": 1.0} if model == "bayesian" else held
        figures = {"parameters": 37_900_000, "parameters_of_base": 0.9995, "vocab_size": 16384, "beside": 3, **held}
        if bits is None:
            figures |= {"diverged": "by step 3"}
        else:
            bins = [{"from": low, "to": high, "bits_per_byte": bits + 1 / (low + 1)} for low, high in BINS]
            figures |= {"choice": bits + 0.1, "bits_per_byte": bits, "tested_tokens": 524_288, "bins": bins}
        self.records.add(EXPERIMENT, model, job.settings, copy.deepcopy(figures) | more)

    def text(self, tmp_path):
        return language.section(self.records, tmp_path / "page.md", tmp_path / "img")

    def flat(self, tmp_path):
        return " ".join(self.text(tmp_path).split())


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "language.jsonl")


def test_names_are_the_studys_own():
    assert (language_data.EXPERIMENT, language_data.MODELS) == (EXPERIMENT, MODELS)
    assert language_data.MATCHED == MATCHED == tuple(language.TITLES) and language_data.BASE in MODELS
    assert len(Sweep().seeds) == language_data.SEEDS
    assert set(language_data.SHARED) <= set(Job(model="kda").settings)


def test_tables_and_sentences(made, tmp_path):
    for rate, bits in ((1e-3, 1.9), (2e-3, 1.8), (4e-3, None)):
        made.add("gated_deltanet", bits, rate=rate)
    for seed, bits in ((1, 1.82), (2, 1.84)):
        made.add("gated_deltanet", bits, seed=seed)
    for seed, bits in enumerate((1.79, 1.80, 1.81)):
        made.add("bayesian", bits, seed=seed)
    for seed, bits in enumerate((1.78, 1.83, 1.82)):
        made.add("mamba2", bits, seed=seed)
    text = made.flat(tmp_path)
    assert "| `gated_deltanet` | 64 × 128 | 1,024 | 37,900,000 (100.0%) | 65,536 (100.0%) | 0.002 | 3 |" in text
    assert "| 1.8200 (1.8000 to 1.8400) |" in text and "| **1.8000** (1.7900 to 1.8100) |" in text
    fewer = "`bayesian` takes 0.0200 bits per byte fewer than `gated_deltanet`, on each of 3 seeds (0.0100 to 0.0300)."
    assert fewer in text
    both = (
        "`bayesian` takes 0.0100 bits per byte fewer than `mamba2` on average of 3 seeds, whose differences are of both"
    )
    assert both in text
    assert "| `gated_deltanet` | 2.8200 | 1.8354 | 1.8278 |" in text  # means of the positions
    assert "| `gated_deltanet` | 2.0000 | **1.9000** | diverged |" in text
    assert "| `mamba2` | not run | **1.8800** | not run |" in text
    assert "first 131,072 held-out tokens" in text and "of 524,288 held-out tokens" in text
    assert "Fewer than" not in text and "Equal heads" not in text and "left out" not in text
    assert "| `gated_deltanet` | 1.9000 (1) | 1.8200 (3) | not run |" in text  # every rate, and its seeds
    assert set(language.pictures(made.records)) == {"language_losses", "language_position"}
    assert "language_position-dark.svg" in text and "language_losses-dark.svg" in text


def test_one_model_serves_both_ways_to_match(made, tmp_path):
    made.add("bayesian", 1.8)
    made.add("kda", 1.9)
    made.add("kda", 1.7, matched="parameters")
    found = language_data.study(made.records)
    assert {matched: list(arms) for matched, arms in found.groups.items()} == {
        "state": ["kda", "bayesian"], "parameters": ["kda", "bayesian"],
    }  # fmt: skip
    assert found.groups["parameters"]["kda"].bits() == {0: 1.7} and found.groups["state"]["kda"].bits() == {0: 1.9}
    text = made.flat(tmp_path)
    assert "fewer than `kda` (one seed: this settles nothing)" in text
    assert "0.1000 bits per byte more than `kda` (one seed: this settles nothing)" in text
    assert "| 32,768 (50.0%) |" in text and "Fewer than 3 seeds: kda (1), bayesian (1)." in text


def test_what_cannot_be_said_is_not(made, tmp_path):
    made.add("kda", 1.9)
    made.add("mamba2", None, rate=1e-3)
    text = made.flat(tmp_path)
    assert "`bayesian` has no result here, so that nothing can be said for or against it." in text
    assert "Diverged at every learning rate tried: mamba2." in text
    assert "Best at an end" not in text
    made.add("kda", 1.8, rate=4e-3)
    assert "a rate beyond may be better: kda." in made.flat(tmp_path)
    made.add("bayesian", 1.85, seed=1)
    assert "`kda` shares no seed with `bayesian`." in made.flat(tmp_path)
    # The newest settings count, and others are counted out.
    made.add("kda", 1.5, recipe=Recipe(tokens=20_000_000))
    text = made.flat(tmp_path)
    assert "**20,000,000 tokens**" in text and "4 at other settings are left out" in text and "1.8000" not in text


def test_nothing_run_and_nothing_but_divergence(made, tmp_path):
    assert made.text(tmp_path) == "" and language.pictures(made.records) == {}
    assert language.beside(Records(tmp_path / "other.jsonl")).path == tmp_path / "language.jsonl"
    made.add("kda", None)
    assert "no held-out tokens" in made.flat(tmp_path) and language.pictures(made.records) == {}
