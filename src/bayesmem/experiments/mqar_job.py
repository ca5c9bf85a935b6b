"""One job of the MQAR study, in a process of its own: ``python -m bayesmem.experiments.mqar_job OUT < settings``."""

import shutil
from pathlib import Path
from typing import Any

import torch

from bayesmem.experiments.common import build
from bayesmem.experiments.job_process import beside, locked, serve
from bayesmem.experiments.mqar_config import EXPERIMENT, Job
from bayesmem.experiments.mqar_data import Batches, choosing, load, milestone, tested, trained
from bayesmem.experiments.mqar_testing import accuracy, learned_gates
from bayesmem.experiments.mqar_training import train
from bayesmem.layers import BayesianLayerConfig
from bayesmem.models import BayesMemForCausalLM
from bayesmem.ops import Backend
from bayesmem.report.records import records_in
from bayesmem.tasks.mqar_variants import VARIANTS
from bayesmem.train import Diverged


def run(job: Job, out: Path) -> None:
    """Train and test, then append the record; nothing is done where it is there already.

    Raises:
        Interrupted: a signal came; a checkpoint was written first.
    """
    if records_in(out).find(EXPERIMENT, job.model, job.settings):
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, place = out / "data", out / "jobs" / job.folder
    model = build(job.seed, **job.options).to(device)
    if job.chunk_size is not None:
        for block in model.layers:
            block.mixer.backend = Backend("auto", job.chunk_size)
    figures: dict[str, Any] = sizes(model) | {"beside": beside()}
    bf16 = job.precision == "bf16"
    batches = Batches([load(data, part, device) for part in trained(job)], job.batch_size, job.steps, job.seed)
    try:
        training = train(model, job, batches, load(data, milestone(job), device), place)
    except Diverged as error:
        figures |= {"diverged": str(error)}
    else:
        reached = training.reached
        figures |= {
            "steps": training.steps,
            "seconds": round(training.seconds, 2),
            "losses": [[step, float(f"{loss:.5g}")] for step, loss in training.losses],
            "milestones": [[step, round(s, 2), right] for step, s, right in training.milestones],
            "reached": None if reached is None else {"step": reached[0], "seconds": round(reached[1], 2)},
        }
        for name, parts in (("accuracy", tested(job)), ("choice", choosing(job))):
            slices = [(part.config, load(data, part, device)) for part in parts]
            figures[name] = [[c.length, c.num_pairs, accuracy(model, rows, bf16)] for c, rows in slices]
            if job.data in VARIANTS:
                figures["asked"] = [[c.length, c.num_pairs, rows.places.shape[1]] for c, rows in slices]
        held = milestone(job)
        figures["gates"] = learned_gates(model, load(data, held, device), held.shown, bf16)
    with locked(out / "records.lock"):
        records_in(out).add(EXPERIMENT, job.model, job.settings, figures)
    shutil.rmtree(place, ignore_errors=True)


def sizes(model: BayesMemForCausalLM) -> dict[str, Any]:
    """Parameters, and numbers that a layer carries (softmax attention: a token)."""
    total = model.num_parameters()
    embedded = model.embed_tokens.weight.numel() * (1 if model.config.tie_word_embeddings else 2)
    mixer = model.config.mixer_configs()[0]
    held: dict[str, Any] = {"parameters": total, "parameters_beside_embeddings": total - embedded}
    if isinstance(mixer, BayesianLayerConfig):
        return held | {"state_per_layer": mixer.state_size, "head": [mixer.head_dim, mixer.value_head_dim]}
    return held | {"state_per_layer_and_token": 2 * mixer.head_dim, "head": [mixer.head_dim, mixer.head_dim]}


if __name__ == "__main__":
    serve(Job.of, run)
