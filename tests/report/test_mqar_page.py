"""The MQAR study's tables, sentences and pictures say what its records say, and name what was not run."""

import copy

import pytest

from bayesmem.design import named
from bayesmem.experiments import mqar_config, mqar_models, mqar_stages
from bayesmem.report import mqar, mqar_data
from bayesmem.report.mqar_plots import hardest, shortest
from bayesmem.report.records import Records

SCALE = {
    "vocab_size": 8192, "trained": [[64, 4, 1000], [256, 64, 200]], "test_rows": 200, "milestone": [256, 64],
    "tested": [[64, 4], [256, 64], [512, 64], [512, 128], [1024, 256]],
}  # fmt: skip
SETTINGS = {
    "model": "", "hidden_size": 64, "matched": "state", "learning_rate": 0.01, "seed": 0, "steps": 3000,
    "batch_size": 256, "data": "zoology", "changes": {}, "chunk_size": None, "precision": "bf16",
    "start": {"tie_word_embeddings": True}, "decay_init": 0.99, "num_layers": 2, "stop_below": None,
    "evaluate_every": 250, "scale": SCALE,
}  # fmt: skip
STATE = {"deltanet": 9216, "gated_deltanet": 9216, "kda": 9216, "bayesian": 8192}


def figures(model: str, score: float, **more) -> dict:
    """Accuracy falls from slice to slice; ``score`` is that of the first."""
    right = [[length, pairs, score * (1 - 0.1 * i)] for i, (length, pairs) in enumerate(SCALE["tested"])]
    held = {"state_per_layer": STATE.get(model, 9000)}
    if model == "attention":
        held = {"state_per_layer_and_token": 128}
    common = {"parameters": 1000, "head": [64, 64], "beside": 12, "steps": 3000, "seconds": 250.0}
    told = {"losses": [[50, 9.0]], "milestones": [[1500, 100.0, score]], "reached": None, "gates": [{}, {}]}
    return held | common | told | {"accuracy": right, "choice": right} | more


class Made:
    """Records made up."""

    def __init__(self, path):
        self.records = Records(path)

    def add(self, model, score=0.9, more=None, **changes):
        settings = copy.deepcopy(SETTINGS) | {"model": model} | changes
        self.records.add("mqar", model, settings, figures(model, score, **(more or {})))

    def text(self, tmp_path):
        return mqar.section(self.records, tmp_path / "page.md", tmp_path / "img")

    def lines(self, tmp_path):
        return self.text(tmp_path).splitlines()

    def flat(self, tmp_path):
        return " ".join(self.text(tmp_path).split())


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path / "mqar.jsonl")


def test_names_are_those_of_the_study():
    assert mqar_data.MODELS == mqar_models.MODELS and mqar_data.MATCHED == mqar_models.MATCHED
    assert tuple(mqar_data.DATA) == mqar_config.DATA and mqar_data.EXPERIMENT == mqar_config.EXPERIMENT
    sweep = mqar_stages.Sweep()
    assert (sweep.widths, len(sweep.seeds), len(sweep.learning_rates)) == (
        mqar_data.WIDTHS,
        mqar_data.SEEDS,
        mqar_data.RATES,
    )
    assert set(mqar_data.SHARED) <= set(mqar_config.Job(model="bayesian").settings)
    reset = [m for m in mqar_models.MODELS if m != "attention" and named(m).covariance == "reset"]
    assert sorted(reset) == sorted(mqar_data.RESET)
    assert set(mqar_data.STYLES) == set(mqar_data.MODELS)
    assert len({style[:2] for style in mqar_data.STYLES.values()}) == len(mqar_data.STYLES)


def test_without_the_bayesian_layer_no_comparison_is_drawn(made, tmp_path):
    made.add("deltanet", 0.9)
    made.add("attention", 1.0)
    made.add("bayesian", 1.0, data="fillers")  # elsewhere: no comparison either
    text = made.flat(tmp_path)
    assert "**No comparison with the Bayesian Layer can be drawn" in text
    assert "or on other rows, below, settle nothing" in text and "among themselves" not in text
    assert "is better than" not in text and "reached:" not in text
    assert "- width 64, matched by state: gated_deltanet, kalman_diagonal, mesanet, bayesian_static," in text
    assert "learning rates: deltanet (1 of 4), attention (1 of 4)" in text
    assert "seeds: deltanet (1 of 3), attention (1 of 3)" in text
    for words in ("matched by parameters: all models", "width 128", "width 256", "the ablations", "rows, forgetting"):
        assert words in text
    assert "rows, fillers" not in text.split("**Not run**")[1]


def test_without_the_bayesian_layer_anywhere_nothing_is_claimed(made, tmp_path):
    made.add("deltanet", 0.9)
    text = made.flat(tmp_path)
    assert "**No comparison with the Bayesian Layer can be drawn" in text
    assert "says nothing for or against the claim" in text and "settle nothing" not in text


def test_the_best_rate_is_chosen_on_its_own_rows_and_seeds_are_told_with_their_spread(made, tmp_path):
    low_choice = [[64, 4, 0.1]]
    made.add("deltanet", 0.99, {"choice": low_choice}, learning_rate=0.1)  # best on test rows, which do not choose
    made.add("deltanet", 0.80)
    made.add("deltanet", 0.90, seed=1, more={"choice": low_choice})
    made.add("deltanet", 0.5, learning_rate=0.03, more={"diverged": "by step 3"})
    made.add("kda", 0.82)
    lines = made.lines(tmp_path)
    assert (
        "| `deltanet` | 9,216 | 1,000 | 0.01 | 2 | **0.850** (0.800 to 0.900) | **0.765** (0.720 to 0.810) |"
        in next(line for line in lines if line.startswith("| `deltanet` | 9,216"))
    )
    assert "| `kda` | 9,216 | 1,000 | 0.01 | 1 | 0.820 | 0.738 | 0.656 | 0.574 | 0.492 |" in lines
    assert "| `deltanet` | **0.640** | diverged | 0.100 |" in lines
    assert "| `kda` | **0.820** | not run | not run |".replace("0.820", "0.656") in lines
    assert "rate beyond may be better: deltanet." in made.flat(tmp_path)
    assert "5 trainings count here." in made.flat(tmp_path)


def test_the_time_to_learn(made, tmp_path):
    made.add("deltanet", 0.995, {"reached": {"step": 1500, "seconds": 100.0}})
    made.add("deltanet", 0.995, {"reached": {"step": 2500, "seconds": 200.0}}, seed=1)
    made.add("deltanet", 0.90, seed=2)
    made.add("kda", 0.5)
    lines = made.lines(tmp_path)
    assert "| `deltanet` | 2,000 | 150 | 2 of 3 | 250 |" in lines
    assert "| `kda` | never (at most 0.500) |  | 0 of 1 | 250 |" in lines
    assert "12 trainings shared the machine" in made.flat(tmp_path)


def test_how_soon_each_learns_is_told_by_those_that_were_looked_at_often(made, tmp_path):
    for seed in range(3):
        made.add("deltanet", 0.9, seed=seed)
        made.add("kda", 0.5, seed=seed)
    assert "### How soon" not in made.text(tmp_path)
    often = {"evaluate_every": 50}
    made.add("deltanet", 0.995, {"reached": {"step": 1200, "seconds": 30.0}}, **often)
    made.add("bayesian", 0.995, {"reached": {"step": 500, "seconds": 20.0}}, **often)
    made.add("kda", 0.5, **often)
    made.add("gla", 0.5, {"milestones": []}, **often)
    made.add("bayesian", 0.995, {"reached": {"step": 400, "seconds": 10.0}}, hidden_size=128, **often)  # not comparable
    made.add("mamba2", 0.7, evaluate_every=500)  # one look in a while says nothing of the others
    text, lines = made.flat(tmp_path), made.lines(tmp_path)
    first = lines.index("| `bayesian` | 0.01 | 500 | 20.0 | 40.0 |")
    assert lines[first + 1] == "| `deltanet` | 0.01 | 1,200 | 30.0 | 25.0 |"
    assert lines[first + 2] == "| `kda` | 0.01 | never (at most 0.500) |  |  |"
    assert lines[first + 3] == "| `gla` | 0.01 | never looked at |  |  |" and not lines[first + 4].startswith("| `")
    assert "The first look, every 50 steps, at which accuracy on other rows of (256, 64) was 99%, seed 0;" in text
    assert "| `deltanet` | 9,216 | 1,000 | 0.01 | 3 | **0.900**" in text and "| `bayesian` | 8,192" not in text


def fill(made, model, far, **changes):
    """Three seeds with the given accuracy at the two bounds, and 1 elsewhere."""
    right = [[64, 4, 1.0], [256, 64, 1.0], [512, 64, 1.0], [512, 128, far[0]], [1024, 256, far[1]]]
    for seed in range(3):
        made.add(model, 1.0, {"accuracy": right, **changes}, seed=seed)


def test_bounds_that_are_reached_and_models_that_are_beaten(made, tmp_path):
    fill(made, "bayesian", (0.95, 0.45))
    for rival in mqar_data.RESET:
        fill(made, rival, (0.7, 0.1))
    text = made.flat(tmp_path)
    assert "`bayesian` (3 seeds): (512, 128) 0.950, at least 0.90 asked: reached;" in text
    assert "(1024, 256) 0.450, at least 0.40 asked: reached." in text and "settles nothing" not in text
    # (512, 64) is a draw, and a draw is not better.
    assert "`bayesian` is **not** better than `deltanet`, `gated_deltanet`, `kda`" in text
    assert "(512, 64) to `deltanet` (1.000 against 1.000)" in text and "(512, 128) to" not in text
    assert "No comparison" not in text


def test_bounds_that_are_missed(made, tmp_path):
    made.add("bayesian", 0.8)
    made.add("deltanet", 0.7)
    text = made.flat(tmp_path)
    assert "(1 seed): (512, 128) 0.560, at least 0.90 asked: **not reached**" in text and "settles nothing" in text
    assert "`bayesian` is better than `deltanet` at every slice" in text
    assert "9,216 state numbers without a record: gated_deltanet, kda." in text


def test_ablations_other_data_and_what_is_learned(made, tmp_path):
    heads = [{"mean": 0.97, "quantiles": []}]
    made.add(
        "bayesian", 1.0, {"gates": [{"retention": {"shown": heads, "rest": heads}}, {"retention": {"fixed": [1.0]}}]}
    )
    made.add("bayesian", 0.5, changes={"retention_init": 0.5})
    made.add("bayesian", 0.7, changes={"design": {"name": "prior_10", "more": 1}})
    made.add("bayesian", 0.7, chunk_size=16)
    made.add("bayesian", 0.7, precision="float32")
    made.add("bayesian", 0.9, data="compositional", more={"asked": [[64, 4, 4], [256, 64, 36]]})
    lines, text = made.lines(tmp_path), made.flat(tmp_path)
    assert "| `bayesian` as it is | 1 | 0.800 | 0.700 | 0.600 |" in lines
    assert "| `bayesian`: retention init 0.5 | 1 | 0.400 | 0.350 | 0.300 |" in lines
    for words in ("design prior_10", "chunks of 16 tokens", "float32"):
        assert any(line.startswith(f"| `bayesian`: {words} | 1 | 0.560") for line in lines)
    assert "`bayesian`, layer 1: shown 0.9700; rest 0.9700. layer 2: 1.0000." in text
    assert "### Width 64, matched by state: keys of two tokens" in text
    assert "associations asked for: (64, 4) 4, (256, 64) 36." in text


def test_an_output_gate_of_all_is_no_ablation(made, tmp_path):
    for model in ("bayesian", "deltanet"):
        made.add(model, 0.9, changes={"output_gate": "none"})
    made.add("attention", 1.0)
    made.add("bayesian", 0.5)
    text = made.flat(tmp_path)
    assert "output gate none" in text and "| `bayesian`: output gate by default | 1 |" in text
    assert "| `attention` | 128 a token | 1,000 | 0.01 | 1 | **1.000** |" in text
    assert "`bayesian`: output gate none" not in text


def test_every_number_of_steps_has_its_part(made, tmp_path):
    made.add("deltanet", 0.9, steps=20)
    made.add("kda", 0.8, steps=20)
    made.add("deltanet", 1.0, steps=30)
    text = made.flat(tmp_path)
    first, second = text.split("## The same, trained for 30 steps")
    assert "**20 steps" in first and "`kda`" in first and "2 trainings count here." in first
    assert "**30 steps" in second and "`kda`" not in second and "Not run" not in second
    assert {"mqar_bytes", "mqar_bytes_30_steps"} <= set(mqar.pictures(made.records))


def test_what_a_longer_training_has_too_is_left_out_and_counted(made, tmp_path):
    made.add("deltanet", 0.9, steps=10)
    made.add("deltanet", 0.9, steps=20)
    text = made.flat(tmp_path)
    assert "1 trainings count here; 1 at other settings are not on this page." in text and "## The same" not in text


def test_a_model_that_always_diverged_is_named(made, tmp_path):
    made.add("deltanet", 0.9)
    made.add("kda", 0.9, {"diverged": "by step 3"})
    assert "Diverged at every learning rate tried: kda." in made.text(tmp_path)


def test_pictures(made):
    made.add("deltanet", 0.9)
    made.add("deltanet", 0.8, seed=1)
    made.add("attention", 1.0)
    made.add("deltanet", 0.9, data="noisy")
    drawn = mqar.pictures(made.records)
    assert set(drawn) == {"mqar_bytes", "mqar_pairs_64_state_zoology", "mqar_pairs_64_state_noisy"}
    for picture in drawn.values():
        assert picture.light.lstrip().startswith("<?xml") and picture.light != picture.dark
    found = mqar_data.studies(made.records)[0]
    assert shortest(found) == [(64, 4), (256, 64), (512, 128), (1024, 256)]
    assert hardest(found) == [(512, 128), (1024, 256)] and found.beyond == [(512, 64), (512, 128), (1024, 256)]
    arms = found.groups[0].arms
    assert arms["deltanet"].bytes[512, 128] == 4 * 2 * 9216
    assert arms["attention"].bytes[512, 128] == 4 * 2 * 128 * 512


def test_nothing_run_is_an_empty_part(tmp_path):
    records = Records(tmp_path / "none.jsonl")
    assert mqar.section(records, tmp_path / "page.md", tmp_path) == "" and mqar.pictures(records) == {}
    assert mqar.beside(records).path == tmp_path / "mqar.jsonl"


def test_who_is_ahead_without_a_reset_is_said(made, tmp_path):
    for model, score in (("bayesian", 0.9), ("deltanet", 0.8), ("kalman_diagonal", 0.95), ("mamba2", 0.85)):
        made.add(model, score)
    said = made.flat(tmp_path)
    assert "**ahead** of the best Bayesian Layer beyond that range: `kalman_diagonal` (1 seed): (512, 64) 0.760" in said
    assert "`mamba2` (1" not in said.split("**ahead**")[1].split("##")[0]
    made.add("bayesian", 1.0, learning_rate=0.02)
    assert "`kalman_diagonal`, `mamba2`, none is ahead of the best Bayesian Layer" in made.flat(tmp_path)
