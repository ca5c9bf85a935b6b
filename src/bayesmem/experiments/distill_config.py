"""A whole distillation: the run of its arms, what is minimised, how the teacher is converted, which controls."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bayesmem.models.plan import ConversionOptions
from bayesmem.train import DistillOptions, RunConfig

STUDENT = "student"
CONTROLS = ("tokens", "flops", "seconds")
ARMS = {name: f"control-{name}" for name in CONTROLS}
WORDS = {"all": CONTROLS, "both": ("tokens", "seconds"), "none": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """A distillation and its controls.

    Attributes:
        run: of the student: data, budget, optimiser; ``start`` is the teacher's folder.
        options: what is minimised, over which weights.
        controls: of ``tokens`` (the same rows in the same order), ``flops`` and ``seconds`` (of the devices).
        tokenizer: folder of one, where the teacher's has none.
        retention: of the student at first; default: .99 of a delta rule, .999 of a softmax teacher's layers.
        attention_every: of a softmax teacher, which layers stay.
        ignore: keys of the teacher's config to leave unread.
        mark: of the teacher's files, so that another teacher in their place is noticed.

    Raises:
        ValueError: options out of bounds, no teacher, or nothing held out.
    """

    run: RunConfig
    options: DistillOptions = field(default_factory=DistillOptions)
    controls: tuple[str, ...] = CONTROLS
    tokenizer: str | None = None
    retention: float | int | None = None
    attention_every: int | None = None
    ignore: tuple[str, ...] = ()
    mark: str = ""

    def __post_init__(self) -> None:
        if self.run.start is None:
            raise ValueError("no teacher given; name its folder by --teacher.")
        if not self.run.held_out:
            raise ValueError("nothing is held out to compare the arms on; name files or folders by --held-out.")
        if unknown := sorted(set(self.controls) - set(CONTROLS)):
            raise ValueError(f"control {unknown[0]!r}; expected some of {', '.join(CONTROLS)}, or all, both, none.")
        if "seconds" in self.controls and self.run.steps < 2 * self.run.log_every + 1:
            raise ValueError(
                f"{self.run.steps} steps, logged every {self.run.log_every}, are too few to tell their speed by, which "
                f"the control of equal seconds needs: log every {max(1, (self.run.steps - 1) // 2)} or fewer."
            )
        self.conversion()

    def conversion(self) -> ConversionOptions:
        """How the teacher is converted."""
        return ConversionOptions(retention=self.retention, attention_every=self.attention_every, ignore=self.ignore)

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "DistillConfig":
        """A config of plain data.

        Raises:
            ValueError: options that are unknown, missing or refused.
        """
        known = {one.name for one in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"unknown options {', '.join(unknown)}; a distillation has {', '.join(sorted(known))}.")
        options: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        options["run"] = RunConfig.of(options.get("run", {}))
        options["options"] = DistillOptions.of(options.get("options", {}))
        return cls(**options)


def read_controls(text: str) -> tuple[str, ...]:
    """Controls as typed, in the order in which they run: names with commas between, or all, both, none."""
    names = WORDS.get(text, tuple(part.strip() for part in text.split(",") if part.strip()))
    if "seconds" in names and "tokens" not in names:
        names = ("tokens", *names)  # its steps are what the other's speed lets it do in the student's time
    return tuple(sorted(names, key=lambda name: CONTROLS.index(name) if name in CONTROLS else len(CONTROLS)))


def mark_of(folder: Path) -> str:
    """A digest of a checkpoint's config and tensors."""
    digest = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
