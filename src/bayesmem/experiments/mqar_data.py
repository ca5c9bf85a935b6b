"""Rows of the MQAR study: made once, kept in files that all jobs share, served in batches of one segment."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from numpy import ndarray
from torch import Tensor
from torch.utils.data import Dataset

from bayesmem.experiments.mqar_config import FILLERS, Job
from bayesmem.tasks import mqar, mqar_variants

TEST_SEED, CHOICE_SEED, MILESTONE_SEED = 1_000_000, 2_000_000, 3_000_000  # apart from all training seeds
LARGE = 1_000_000  # of _work: less is made here sooner than a process starts


@dataclass(frozen=True, slots=True)
class Part:
    """One segment of rows, by all that its tokens depend on.

    Attributes:
        data: which rows, of ``mqar_config.DATA``.
        config: their sizes; of a variant, those of the plain rows that it stands beside.
        seed: of the generator.
    """

    data: str
    config: mqar.MQARConfig
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        c = self.config
        return f"{self.data}-v{c.vocab_size}-t{c.length}-p{c.num_pairs}-n{c.rows}-seed{self.seed}.npz"

    @property
    def shown(self) -> int:
        """Tokens at the start of a row that show its associations."""
        if self.data in mqar_variants.VARIANTS:
            return mqar_variants.like(self.data, self.config).shown
        return 2 * self.config.num_pairs

    def make(self) -> mqar.Batch:
        """All its rows."""
        if self.data in mqar_variants.VARIANTS:
            return mqar_variants.like(self.data, self.config).make(self.seed)
        return mqar.make(self.config, self.seed)


@dataclass(frozen=True, slots=True)
class Asked:
    """Rows, and where they ask what.

    Attributes:
        inputs: tokens.
        places: positions that ask.
        answers: the right token there.
    """

    inputs: Int[Tensor, "N T"]
    places: Int[Tensor, "N P"]
    answers: Int[Tensor, "N P"]

    def rows(self, index: Tensor | slice) -> dict[str, Tensor]:
        """Some rows as a model takes them; ``places`` counts through the batch, row after row."""
        inputs, places, answers = self.inputs[index], self.places[index], self.answers[index]
        start = torch.arange(len(inputs), device=inputs.device)[:, None] * inputs.shape[1]
        return {"input_ids": inputs.long(), "places": (places + start).flatten(), "answers": answers.flatten().long()}


def trained(job: Job) -> list[Part]:
    """The training segments of a job."""
    return [_part(job, *segment, job.seed * 1000 + i) for i, segment in enumerate(job.scale.trained)]


def tested(job: Job) -> list[Part]:
    """Its test slices."""
    return [_part(job, *s, job.scale.test_rows, TEST_SEED + i) for i, s in enumerate(job.scale.tested)]


def choosing(job: Job) -> list[Part]:
    """The same slices, other rows: what learning rates are chosen by."""
    return [_part(job, *s, job.scale.choice_rows, CHOICE_SEED + i) for i, s in enumerate(job.scale.tested)]


def milestone(job: Job) -> Part:
    """The rows on which the speed of learning is told."""
    return _part(job, *job.scale.milestone, job.scale.milestone_rows, MILESTONE_SEED)


def _part(job: Job, length: int, pairs: int, rows: int, seed: int) -> Part:
    config = mqar.MQARConfig(job.scale.vocab_size, length, pairs, rows, random_fillers=job.data == FILLERS)
    return Part(job.data, config, seed)


def prepare(folder: Path, jobs: Iterable[Job], processes: int) -> int:
    """Make all rows that the jobs need and that are not in ``folder`` yet, side by side; how many parts were made."""
    wanted = {part for job in jobs for part in (*trained(job), *tested(job), *choosing(job), milestone(job))}
    missing = sorted((part for part in wanted if not (folder / part.name).is_file()), key=_work, reverse=True)
    folder.mkdir(parents=True, exist_ok=True)
    large = [part for part in missing if _work(part) >= LARGE and processes > 1]
    with ThreadPoolExecutor(processes) as pool:
        beside = [pool.submit(_make_beside, folder, part) for part in large]
        for part in missing:
            if part not in large:
                _make(folder, part)
        for one in beside:
            one.result()
    return len(missing)


def _make_beside(folder: Path, part: Part) -> None:
    """Make a part in a process of its own."""
    command = [sys.executable, "-m", "bayesmem.experiments.mqar_data", str(folder)]
    subprocess.run(command, input=json.dumps(asdict(part)), text=True, check=True)


def _work(part: Part) -> int:
    return part.config.rows * (part.config.num_pairs + 60)  # 60: what a row costs whatever it holds, in pairs


def _make(folder: Path, part: Part) -> None:
    batch = part.make()
    where = batch.targets != mqar.IGNORED
    shape = (part.config.rows, -1)
    places = np.nonzero(where)[1].reshape(shape)
    answers = batch.targets[where].reshape(shape)
    beside = folder / f"{part.name}.{os.getpid()}"
    with beside.open("wb") as file:
        np.savez(file, inputs=_small(batch.inputs), places=_small(places), answers=_small(answers))
    beside.replace(folder / part.name)


def _small(x: ndarray) -> ndarray:
    return x.astype(np.int32)


def load(folder: Path, part: Part, device: torch.device) -> Asked:
    """Rows on a device; made first, where they are not in ``folder`` yet."""
    path = folder / part.name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _make(folder, part)
    with np.load(path) as held:
        return Asked(*(torch.from_numpy(held[name]).to(device) for name in ("inputs", "places", "answers")))


class Batches(Dataset):
    """The batch of every step, as a function of seed and step alone: each of one segment, as Zoology has it.

    An epoch shuffles the rows of every segment, cuts them into whole batches (a rest waits for the next epoch, which
    shuffles anew) and takes these in random order.

    Args:
        segments: the training segments, on the device.
        batch_size: rows a batch.
        steps: batches in all.
        seed: of the order.
    """

    def __init__(self, segments: Sequence[Asked], batch_size: int, steps: int, seed: int):
        self.segments, self.batch_size, self.steps, self.seed = segments, batch_size, steps, seed
        counts = [len(segment.inputs) // batch_size for segment in segments]
        self.owners = np.repeat(np.arange(len(segments)), counts)
        self.within = np.concatenate([np.arange(count) for count in counts])
        self._epoch: tuple[int, ndarray, list[Tensor]] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        epoch, place = divmod(step, len(self.owners))
        if self._epoch is None or self._epoch[0] != epoch:
            random = np.random.default_rng([self.seed, epoch])
            orders = [torch.from_numpy(random.permutation(len(s.inputs))).to(s.inputs.device) for s in self.segments]
            self._epoch = epoch, random.permutation(len(self.owners)), orders
        _, order, orders = self._epoch
        batch = order[place]
        owner, start = self.owners[batch], self.within[batch] * self.batch_size
        return self.segments[owner].rows(orders[owner][start : start + self.batch_size])


def main() -> None:
    """Make the part that comes as JSON."""
    given = json.load(sys.stdin)
    _make(Path(sys.argv[1]), Part(given["data"], mqar.MQARConfig(**given["config"]), given["seed"]))


if __name__ == "__main__":
    main()
