"""The benchmark: what it measures, that a contender's failure is a record, and that a run goes on where it stopped."""

import json
import sys
import time

import pytest
import torch
from typer.testing import CliRunner

from bayesmem import cli
from bayesmem.experiments import bench, bench_floors, bench_inputs, bench_measure, bench_peers
from bayesmem.experiments.bench_config import Job, Shape, shapes
from bayesmem.experiments.bench_contenders import contenders
from bayesmem.report.records import Records

SMALL = Shape(1, 64, 2, 16, 16)


def job(name: str, what: str = "forward") -> Job:
    return Job(name, what, SMALL, "float32")


def test_the_grid_reaches_as_far_as_it_says():
    grid = shapes("grid", "backward", "cuda")
    assert len(set(grid)) == len(grid) and grid[:3] == shapes("headline", "backward", "cuda")
    assert {s.B * s.H for s in grid} == {8, 16, 32, 64, 128, 256, 512}
    assert {s.T for s in grid} == {1024 * 2**n for n in range(7)}
    assert {s.K for s in grid} == {64, 128, 256}


def test_a_job_survives_its_way_to_the_process():
    assert Job.from_dict(job("bayesian").as_dict()) == job("bayesian")
    ceiling = Job("ceilings", "copy", None, "float32")
    assert Job.from_dict(ceiling.as_dict()) == ceiling


def test_inputs_are_the_same_for_every_contender():
    def drawn(*names):
        return bench_inputs.make(names, SMALL, 64, torch.float32, "cpu", 0)

    alone, among = drawn("v"), drawn("q", "k", "v", "obs_noise", "beta", "log_decay")
    assert torch.equal(alone["v"], among["v"])
    assert torch.equal(among["beta"], 1 / (1 + among["obs_noise"]))
    torch.testing.assert_close(among["k"].norm(dim=-1), torch.ones(1, 64, 2))
    assert not torch.equal(among["q"], among["k"]) and among["log_decay"].max() <= 0


@pytest.mark.parametrize("name", contenders("cpu"))
def test_contenders_with_our_equations_are_right(name):
    figures = bench_measure.measure(job(name), "cpu", "quick")
    assert figures["low_ms"] <= figures["median_ms"] <= figures["high_ms"] and figures["samples"] >= 5
    assert figures.get("error", 0) < 1e-5
    assert ("error" in figures) == (name != "attention")


@pytest.mark.parametrize("name", ["bayesian_var", "gated_deltanet"])
def test_backward_and_decoding(name):
    backward = bench_measure.measure(job(name, "backward"), "cpu", "quick")
    decode = bench_measure.measure(job(name, "decode"), "cpu", "quick")
    assert backward["flops"] == 3 * bench_floors.flops(job(name))
    assert decode["steps_ms"] > 0 and decode["flops"] * SMALL.T == bench_floors.flops(job(name))


def test_the_least_arithmetic_and_traffic():
    assert bench_floors.flops(job("bayesian")) == 2 * 64 * (6 * 16**2 + 4 * 16**2)
    assert bench_floors.flops(job("bayesian_reset")) == bench_floors.flops(job("gated_deltanet"))
    assert bench_floors.flops(job("bayesian_reset_channel")) == bench_floors.flops(job("kda"))
    assert bench_floors.traffic(job("bayesian", "decode"), {"q": 1, "mean": 10, "cov": 100}, 1000) == 1221
    assert bench_floors.traffic(job("bayesian", "backward"), {"q": 1, "k": 10}, 1000) == 2033


def test_references_are_the_released_equations():
    """Each reference that a GPU's kernel is held to, against the peer's own naive one."""
    from peers import released

    peers = bench_peers.cuda()
    x = bench_inputs.make(("channel_log_decay", *bench_peers.MESA), SMALL, 64, torch.float64, "cpu", 0)
    x = {name: tensor.double() for name, tensor in x.items()}
    q, k, v = x["q"], x["k"], x["v"]
    with released.lifted():
        naive = {
            "gated_deltanet": released.naive_recurrent_gated_delta_rule(q, k, v, x["beta"], x["log_decay"], scale=1.0),
            "kda": released.naive_recurrent_kda(q, k, v, x["channel_log_decay"], x["beta"], scale=1.0),
            "mamba2": released.naive_recurrent_simple_gla(q, k, v, x["log_decay"], scale=1.0),
            "mesanet": released.naive_mesa_net_exact(q, k, v, x["log_decay"], x["prior_precision"], x["beta"]),
        }
    for name, found in naive.items():
        o = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(peers[name].filter.reference(x), o, rtol=1e-5, atol=1e-6, msg=name)


def test_a_failure_is_a_result_and_the_next_goes_on():
    config = bench.BenchRun(preset="quick", limit=60)
    found = list(bench.contend([job("nobody"), job("attention")], config, "cpu"))
    assert found[0][1] == {"reason": "KeyError: 'nobody'"}
    assert found[1][0] == job("attention") and found[1][1]["median_ms"] > 0


FIGURES = {"median_ms": 1, "low_ms": 1, "high_ms": 1}
DIES = """
import json, os, sys
jobs = json.load(sys.stdin)["jobs"]
for i, job in enumerate(jobs):
    print(json.dumps({"started": i}), flush=True)
    if job["what"] == "backward":
        print("killed by its own kernel", file=sys.stderr, flush=True)
        os._exit(9)
    print(json.dumps({"done": i, "figures": {"median_ms": 1, "low_ms": 1, "high_ms": 1}}), flush=True)
"""


def test_a_process_that_dies_takes_one_job_with_it(monkeypatch):
    monkeypatch.setattr(bench, "COMMAND", [sys.executable, "-c", DIES])
    jobs = [job("a", what) for what in ("forward", "backward", "decode")]
    found = list(bench.contend(jobs, bench.BenchRun(), "cpu"))
    assert [j.what for j, _ in found] == ["forward", "backward", "decode"]
    assert found[1][1] == {"reason": "its process ended: killed by its own kernel"}
    assert found[0][1] == found[2][1] == FIGURES


def test_a_process_that_cannot_start(monkeypatch):
    monkeypatch.setattr(bench, "COMMAND", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    found = list(bench.contend([job("a"), job("a", "decode")], bench.BenchRun(), "cpu"))
    assert [figures for _, figures in found] == 2 * [{"reason": "its process ended: no such thing"}]


def test_the_limit_ends_a_contender(monkeypatch):
    hangs = "import time; print('{\"started\": 0}', flush=True); time.sleep(60)"
    monkeypatch.setattr(bench, "COMMAND", [sys.executable, "-c", hangs])
    started = time.monotonic()
    found = list(bench.contend([job("a"), job("a", "decode")], bench.BenchRun(limit=0.5), "cpu"))
    assert time.monotonic() - started < 10
    assert found == [(job("a"), {"reason": "cut short at the limit of 0.5 s"})]


def test_compiling_ahead_tells_failures(monkeypatch, capsys):
    monkeypatch.setattr(bench, "COMMAND", [sys.executable, "-c", DIES.replace(json.dumps(FIGURES), "{}")])
    jobs = [job("a"), job("b", "backward")]
    bench._compile_ahead(bench.BenchRun(), "cpu", jobs, bench.Console(stderr=True))
    told = capsys.readouterr().err
    assert "compiled a in 0 s\n" in told and "compiled b in 0 s, 1 failed" in told


def test_a_run_goes_on_from_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "COMMAND", [sys.executable, "-c", DIES])
    monkeypatch.setenv("BAYESMEM_COMMIT", "one")
    arguments = ["bench", "--out", str(tmp_path), "--shapes", "quick", "--only", "attention"]
    monkeypatch.setattr(cli, "_draw", lambda *_: None)
    records = Records(tmp_path / "records.jsonl")
    monkeypatch.setattr(cli.bench_plots, "pictures", lambda _: {})
    monkeypatch.setattr(cli.bench_report, "section", lambda *_: "")
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    first = records.all()
    assert [(r.name, r.settings["what"]) for r in first] == [
        *(("ceilings", what) for what in ("matmul", "copy")),
        *(("attention", what) for what in ("forward", "backward", "decode")),
    ]
    assert {r.context["commit"] for r in first} == {"one"}
    CliRunner().invoke(cli.app, arguments)
    assert records.all() == first
    records.add("bench", "attention", job("attention").settings(), {"reason": "cut short at the limit of 1 s"})
    CliRunner().invoke(cli.app, [*arguments, "--commit", "two"])
    assert len(records.all()) == 2 * len(first) + 1


def test_the_command_from_end_to_end(tmp_path):
    arguments = ["--shapes", "quick", "--only", "attention", "--what", "forward"]
    result = CliRunner().invoke(cli.app, ["bench", "--out", str(tmp_path), *arguments])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "bench.md").read_text()
    assert "| `attention` |" in text and "Tflop/s of matrix products" in text
    assert (tmp_path / "img").is_dir()


def test_an_interrupted_run_keeps_what_it_has(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "run", interrupted)
    result = CliRunner().invoke(cli.app, ["bench", "--out", str(tmp_path)])
    assert result.exit_code == 130 and "same command goes on" in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shapes", "huge"], "shapes is 'huge'; expected one of quick, headline, grid"),
        (["--what", "sideways"], "what is 'sideways'; expected some of forward, backward, decode"),
        (["--what", ","], "what is empty"),
        (["--limit", "0"], "limit is 0 seconds"),
        (["--only", "nobody"], "there is no contender nobody on cpu; expected some of bayesian"),
    ],
)
def test_bad_options_are_refused(tmp_path, arguments, said):
    result = CliRunner().invoke(cli.app, ["bench", "--out", str(tmp_path), *arguments])
    assert isinstance(result.exception, ValueError) and said in str(result.exception)
