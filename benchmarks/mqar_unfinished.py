"""MQAR trainings that were stopped near their end, tested as they lie: checkpoints are not kept for another day.

    python benchmarks/mqar_unfinished.py FOLDER FILE

FOLDER is a study's (``bayesmem run mqar --out FOLDER``) with jobs under way; every last checkpoint is tested on the
study's slices on this machine, and a row goes to FILE, one record a line, with the step it had reached. These are no
records of the study, which has only finished trainings.
"""

import json
import sys
from pathlib import Path

import torch

from bayesmem.experiments.mqar_config import Job
from bayesmem.experiments.mqar_data import load, tested
from bayesmem.experiments.mqar_testing import accuracy
from bayesmem.models import BayesMemForCausalLM
from bayesmem.ops import chunk
from bayesmem.report.records import Records
from bayesmem.train.checkpoints import last_checkpoint, step_of


def main() -> None:
    """Every job under way."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python benchmarks/mqar_unfinished.py FOLDER FILE")
    folder, records = Path(sys.argv[1]), Records(Path(sys.argv[2]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chunk.ITERATIVE_DEVICES = ("cuda", "cpu")  # without gradients it is the quicker way on a CPU too
    places = sorted(path.parent for path in (folder / "jobs").glob("*/fingerprint.json"))
    if not places:
        raise SystemExit(f"no jobs under way in {folder / 'jobs'}; give the folder of a study that was stopped.")
    for place in places:
        settings = json.loads((place / "fingerprint.json").read_text())
        job, checkpoint = Job.of(settings), last_checkpoint(place)
        if checkpoint is None or records.find(
            "mqar, unfinished", job.model, job.settings | {"step": step_of(checkpoint)}
        ):
            continue
        model = BayesMemForCausalLM.from_pretrained(checkpoint).to(device)
        found = []
        for part in tested(job):
            right = accuracy(model, load(folder / "data", part, device), job.precision == "bf16")
            found.append([part.config.length, part.config.num_pairs, right])
            print(place.name, *found[-1], flush=True)
        records.add("mqar, unfinished", job.model, job.settings | {"step": step_of(checkpoint)}, {"accuracy": found})


if __name__ == "__main__":
    main()
