"""The scripts of ``benchmarks`` import what there is; what they time needs a GPU."""

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_all_of_them_import():
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    assert "chain_cuts" in names
    path = os.pathsep.join([str(FOLDER), str(FOLDER.parent / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    lines = [f"import {name}" for name in names]
    given = os.environ | {"PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, env=given)
