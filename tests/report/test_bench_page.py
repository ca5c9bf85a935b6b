"""The benchmark's tables and pictures say what its records say."""

import pytest

from bayesmem.experiments.bench_contenders import contenders
from bayesmem.experiments.bench_peers import cuda
from bayesmem.report import bench, bench_plots
from bayesmem.report.bench_data import STYLES, beside, measured
from bayesmem.report.records import Records

SIZE = {"B": 8, "T": 4096, "H": 8, "K": 128, "V": 128}


def figures(median: float, **more) -> dict:
    spread = {"median_ms": median, "low_ms": 0.9 * median, "high_ms": 1.1 * median, "samples": 9}
    counts = {"flops": 1e12, "bytes": 1e9, "peak_bytes": 2**30, "first_call_s": 1.0}
    return spread | counts | more


@pytest.fixture
def records(tmp_path):
    found = Records(tmp_path / "bench.jsonl")

    def add(name, what, result, **size):
        found.add("bench", name, {"what": what} | SIZE | size | {"dtype": "bfloat16", "seed": 0}, result)

    found.add("bench", "ceilings", {"what": "matmul"}, {"median_ms": 1.0, "per_s": 5e14})
    found.add("bench", "ceilings", {"what": "copy"}, {"median_ms": 1.0, "per_s": 2e12})
    for what, ours, theirs in (("forward", 3.0, 2.0), ("backward", 12.0, 6.0)):
        add("bayesian", what, figures(9.0))  # an older one, which does not count
        add("bayesian", what, figures(ours, error=0.003))
        add("gated_deltanet", what, figures(theirs))
        for length in (8192, 16384):
            add("bayesian", what, figures(ours * length / 4096), T=length)
    add("mesanet", "forward", {"reason": "AssertionError: too wide"})
    add("mesanet", "forward", {"reason": "AssertionError: too wide"}, T=8192)
    for batch in (1, 16, 256):
        add("bayesian_in_place", "decode", figures(0.02, steps_ms=0.03 * batch, graph_ms=0.0123), B=batch)
        add("kda", "decode", figures(0.02, steps_ms=0.03, graph_ms="RuntimeError: not in a graph"), B=batch)
    return found


def test_the_main_table(records, tmp_path):
    text = bench.section(records, tmp_path / "page.md", tmp_path / "img")
    assert "**B=8 T=4,096 H=8 K=V=128**" in text and "500 Tflop/s" in text and "2,000 GB/s" in text
    row = next(line for line in text.splitlines() if line.startswith("| `bayesian` | 3"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:3] == ["3.00 (2.70 to 3.30)", "1.50×"] and cells[3:5] == ["12.0 (10.8 to 13.2)", "2.00×"]
    assert cells[5:] == ["1,024", "16.7%", "4.2%", "3e-03"]


def test_other_sizes_decoding_and_failures(records, tmp_path):
    text = bench.section(records, tmp_path / "page.md", tmp_path / "img")
    assert "| B=8 T=16,384 H=8 K=V=128 | 48.0 |" in text.replace(" |  |", " |")
    assert "| `bayesian_in_place` | 30.0 / 12.3 | 480 / 12.3 | 7,680 / 12.3 |" in text
    assert "| `kda` | 30.0 | 30.0 | 30.0 |" in text
    failures = text[text.index("Not measured:") :]
    assert failures.count("- `mesanet`, forward (B=8 T=4,096 H=8 K=V=128; B=8 T=8,192 H=8 K=V=128): Assert") == 1


@pytest.mark.parametrize("other", ["command", "commit"])
def test_figures_of_several_runs_say_so(records, tmp_path, monkeypatch, other):
    assert " runs, " not in bench.section(records, tmp_path / "page.md", tmp_path / "img")
    if other == "command":
        monkeypatch.setattr("sys.argv", ["bayesmem", "bench", "--only", "kda"])
    else:
        monkeypatch.setenv("BAYESMEM_COMMIT", "another")
    records.add("bench", "kda", {"what": "forward"} | SIZE | {"dtype": "bfloat16", "seed": 0}, figures(4.0))
    text = bench.section(records, tmp_path / "page.md", tmp_path / "img")
    assert "(2 runs, perhaps on several cards of this kind; of each op and size the latest)" in text


def test_pictures(records):
    drawn = bench_plots.pictures(records)
    assert {name.rsplit("_", 1)[1] for name in drawn} == {"ratios", "length", "decode"}
    for picture in drawn.values():
        assert picture.light.lstrip().startswith("<?xml") and picture.light != picture.dark


def test_nothing_measured_is_an_empty_part(tmp_path):
    records = beside(Records(tmp_path / "collision.jsonl"))
    assert records.path == tmp_path / "bench.jsonl" and measured(records) == []
    assert bench.section(records, tmp_path / "page.md", tmp_path) == "" and bench_plots.pictures(records) == {}


def test_every_contender_has_its_colour():
    assert set(contenders("cpu")) | set(contenders("cuda")) | set(cuda()) <= set(STYLES)
