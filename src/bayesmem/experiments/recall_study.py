"""The recall study: layers of equal state learn to recall noisy observations, and are held to the best predictor."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from bayesmem.design import ZOO
from bayesmem.experiments.common import sizes
from bayesmem.experiments.measure import seed_of
from bayesmem.experiments.recall_config import DESIGNS, SCALES, RecallStudy
from bayesmem.experiments.recall_model import build
from bayesmem.experiments.recall_score import Tests, score, tests
from bayesmem.report import recall_study as report
from bayesmem.report.records import Records, records_in
from bayesmem.tasks.observations import WORLDS, make
from bayesmem.train import train

__all__ = ["DESIGNS", "EXPERIMENT", "SCALES", "WORLDS", "RecallStudy", "run"]

EXPERIMENT = report.EXPERIMENT


class Shown(Dataset):
    """Training rows: tokens and what their last ones ask.

    Args:
        config: of the study.
        world: of ``WORLDS``.
        seed: another gives other rows.
    """

    def __init__(self, config: RecallStudy, world: str, seed: int):
        kinds = config.trained(world)
        share = -(-config.rows // len(kinds))
        drawn = [make(one, share, seed_of("train", world, str(seed), str(i))) for i, one in enumerate(kinds)]
        self.features = torch.cat([data.features for data in drawn])
        self.targets = torch.cat([data.targets.float() for data in drawn])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.features[index], "targets": self.targets[index]}


def run(
    config: RecallStudy,
    out: Path,
    worlds: Sequence[str] = WORLDS,
    designs: Sequence[str] = DESIGNS,
    seeds: Sequence[int] = (0,),
) -> None:
    """Train and test every design in every world; finished ones are taken from the records in ``out``.

    Whatever happens, ``recall.md`` and its pictures there show what there is.

    Args:
        config: settings; its training's seed is set aside.
        out: folder of records, checkpoints and the page.
        worlds: of ``WORLDS``.
        designs: names of the zoo.
        seeds: of data, initialisation and order; all models of one come before the next.

    Raises:
        ValueError: a world or a design that there is not.
        Interrupted: a signal came; a checkpoint was written first.
    """
    for what, given, known in (("world", worlds, WORLDS), ("design", designs, tuple(ZOO))):
        if unknown := sorted(set(given) - set(known)):
            raise ValueError(f"there is no {what} {', '.join(unknown)}; expected some of {', '.join(known)}.")
    for design in designs:
        config.mixer(design)  # what cannot be built is said now
    records, asked = records_in(out), {}
    try:
        for seed, world, design in product(seeds, worlds, designs):
            settled = replace(config, train=replace(config.train, seed=seed))
            if records.find(EXPERIMENT, design, settled.settings(world)):
                continue
            if world not in asked:
                asked = {world: tests(config, world)}  # one world's at a time
            _one(settled, world, design, asked[world], records, out)
    finally:
        report.write(records, out)


def _one(config: RecallStudy, world: str, design: str, on: Tests, records: Records, out: Path) -> None:
    settings, seed = config.settings(world), config.train.seed
    model = build(
        seed,
        config.base(world).features,
        vocab_size=config.value_dim,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        intermediate_size=0,
        norm_eps=config.norm_eps,
        initializer_range=config.init,
        mixer=config.mixer(design),
    )
    mark = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    folder = out / "checkpoints" / f"{world}-{design}-{seed}-{mark}"
    result = train(model, Shown(config, world, seed), config.train, folder, f"recall, {world}, {design}")
    figures = {"losses": result.losses, "seconds": round(result.seconds, 1), **sizes(model)}
    records.add(EXPERIMENT, design, settings, figures | score(model, on))
