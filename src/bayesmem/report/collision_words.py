"""The collision study in words, every number taken from its records."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.records import Record
from bayesmem.report.verdicts import pooled_slope

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Looks numbers up in one sweep's record and writes them out.

    Attributes:
        record: of the sweep.
    """

    record: Record

    def __call__(self, panel: str, rule: str, x: float | int, form: str = ".3g") -> str:
        """The simulated number of a rule at x."""
        return self.text(self.value(panel, rule, x), form)

    def value(self, panel: str, rule: str, x: float | int) -> float:
        """The same as a number."""
        points = self.curve(panel, rule)["points"]
        return next(p["simulated"] for p in points if p["x"] == x)

    def times(self, panel: str, over: str, under: str, x: float | int) -> str:
        """How many times as large the first rule's number is."""
        return self.text(self.value(panel, over, x) / self.value(panel, under, x), ".2g")

    def setting(self, name: str) -> str:
        """A setting of the study."""
        return f"{self.record.settings[name]:g}"

    def curve(self, panel: str, rule: str) -> dict[str, Any]:
        """One curve, by its label, or by the rule where only that is known."""
        curves = [c for c in self.record.figures["curves"] if c["panel"] == panel]
        named = [c for c in curves if c["label"] == rule] or [c for c in curves if c["rule"] == rule]
        return named[0]

    def high(self, label: str, x: float | int) -> str:
        """By how much the prediction of the settled variance is too high."""
        point = next(p for p in self.curve("settled", label)["points"] if p["x"] == x)
        return f"{point['predicted'] / point['simulated'] - 1:.1%}"

    def slopes(self) -> str:
        """The calibration slopes of all rules, pooled over their points."""
        pooled = [(c["rule"], *pooled_slope(c)) for c in self.record.figures["curves"] if c["panel"] == "slope"]
        return "; ".join(f"{rule} {mean:.3f} ± {half:.3f}" for rule, mean, half in pooled)

    @staticmethod
    def text(number: float | int, form: str = ".3g") -> str:
        """A number without exponents where it is of a usual size."""
        if abs(number) >= 1000:
            return f"{round(number, 3 - len(str(int(abs(number))))):,.0f}"
        return f"{number:{form}}".replace("-", MINUS)


TITLES = {
    "repeats": "Repeated evidence",
    "collision": "Collision",
    "angle": "Collision over the angle",
    "noise": "Noise",
    "load": "Load",
    "wrong": "Wrong assumptions",
    "changes": "A memory that changes",
    "calibration": "Calibration",
}


@dataclass(frozen=True, slots=True)
class Section:
    """One sweep in words.

    Attributes:
        name: of the sweep, and of its picture ``collision_NAME``.
        title: in words.
        paragraphs: each one line of Markdown, with ``**`` and nothing else.
    """

    name: str
    title: str
    paragraphs: tuple[str, ...]


def sections(found: Mapping[str, Record]) -> list[Section]:
    """What each sweep shows, with the numbers of its record."""
    environment = Environment(loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True)
    words = environment.get_template("collision.md.j2").module
    texts = {name: str(getattr(words, name)(Reader(record))).strip() for name, record in found.items()}
    return [Section(name, TITLES[name], _paragraphs(text)) for name, text in texts.items()]


def _paragraphs(text: str) -> tuple[str, ...]:
    return tuple(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
