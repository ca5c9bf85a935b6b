"""The scripts of ``benchmarks`` import what there is; what most of them time needs a GPU."""

import os
import subprocess
import sys
from pathlib import Path

from bayesmem.report.records import Records

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_all_of_them_import():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert "chain_cuts" in names
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    lines = [f"import {name}" for name in names]
    given = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, env=given)


def test_the_host_alone_is_timed_without_a_gpu(tmp_path):
    given = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, FOLDER / "host_alone.py", tmp_path / "rows.jsonl"], check=True, env=given)
    rows = Records(tmp_path / "rows.jsonl").all()
    assert [(row.name, row.settings["tapes"]) for row in rows] == [
        (name, tapes) for tapes in (True, False) for name in ("forward", "backward")
    ]
    assert all(row.figures["median_ms"] > 0 for row in rows)
