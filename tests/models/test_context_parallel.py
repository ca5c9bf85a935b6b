"""A model over sequences split across ranks is the model: two gloo processes, outputs and averaged gradients."""

import os
import subprocess
import sys
from pathlib import Path


def test_two_ranks(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "models.context_ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), "2", tmp_path], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1].decode() for rank in ranks]
    assert sorted(x.name for x in tmp_path.glob("*.done")) == ["0.done", "1.done"], "\n".join(errors)
