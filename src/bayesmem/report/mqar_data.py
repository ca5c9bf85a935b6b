"""The records of the MQAR study: what was run of it at one set of settings, seeds together, and what was not."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bayesmem.report.plots import PALETTE, RULES
from bayesmem.report.records import Record, Records

EXPERIMENT = "mqar"
ATTENTION = "attention"
BAYESIAN = ("bayesian_static", "bayesian_forgetting", "bayesian_prior_mixing", "bayesian")
RESET = ("deltanet", "gated_deltanet", "kda")
MODELS = (
    "deltanet",
    "gated_deltanet",
    "kalman_diagonal",
    "mesanet",
    *BAYESIAN,
    "linear_attention",
    "gla",
    "mamba2",
    "kda",
    "kalman_isotropic",
    ATTENTION,
)
PLAIN = "zoology"
DATA = {
    PLAIN: "Zoology's rows",
    "fillers": "random tokens where nothing is asked",
    "forgetting": "keys given a second value",
    "compositional": "keys of two tokens",
    "noisy": "values that disagree",
}
WIDTHS, MATCHED, SEEDS, RATES = (64, 128, 256), ("state", "parameters"), 3, 4  # the whole study's
# Settings in which the records of one study do not differ.
SHARED = ("steps", "batch_size", "decay_init", "stop_below", "num_layers", "start", "scale")
# A colour for a light page, one for a dark page, a marker.
STYLES = {name: RULES[name] for name in MODELS if name in RULES}
for _name, _marker in (("kalman_diagonal", "p"), ("kalman_isotropic", "H")):  # thin ones are lost on a curve
    STYLES[_name] = (*RULES[_name][:2], _marker)
STYLES["bayesian_prior_mixing"] = ("#4c8a1f", "#a9dd73", "*")
STYLES["gla"] = ("#4a7a9c", "#a6cfea", "h")
STYLES["mamba2"] = ("#b8328a", "#ff8fd2", "v")
STYLES["kda"] = ("#b3202c", "#ff8080", "<")
STYLES[ATTENTION] = ("#1c2430", "#dfe5ee", "X")
for _name, (_light, _dark, _) in STYLES.items():
    PALETTE["light"][f"mqar {_name}"], PALETTE["dark"][f"mqar {_name}"] = _light, _dark

Slice = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Arm:
    """One model at one size on one kind of data.

    Attributes:
        model: its name.
        rates: score by learning rate at the first seed: mean accuracy over the rows kept for choosing, and ``None``
            where training diverged.
        best: the rate with the best score; ``None`` where all diverged.
        rows: records at the best rate, one a seed, those that diverged left out.
        diverged: seeds that diverged at the best rate.
    """

    model: str
    rates: dict[float | int, float | int | None]
    best: float | int | None
    rows: list[Record]
    diverged: list[int]

    def accuracy(self, slice_: Slice) -> list[float | int]:
        """On one slice, a number a seed."""
        return [right for row in self.rows for *at, right in row.figures["accuracy"] if tuple(at) == slice_]

    @property
    def bytes(self) -> dict[Slice, int]:
        """State of all layers by slice, four bytes a number; softmax attention's grows with the tokens."""
        figures, layers = self.rows[0].figures, self.rows[0].settings["num_layers"]
        held = figures.get("state_per_layer")
        return {
            (length, pairs): 4 * layers * (figures["state_per_layer_and_token"] * length if held is None else held)
            for length, pairs, _ in figures["accuracy"]
        }


@dataclass(frozen=True, slots=True)
class Group:
    """All models at one size on one kind of data.

    Attributes:
        width: model width.
        matched: by ``"state"`` or ``"parameters"``.
        data: of ``DATA``.
        arms: by model, in the order of ``MODELS``.
    """

    width: int
    matched: str
    data: str
    arms: dict[str, Arm]

    @property
    def main(self) -> bool:
        """Whether it is Zoology's own data, matched by state."""
        return self.matched == MATCHED[0] and self.data == PLAIN


@dataclass(frozen=True, slots=True)
class Study:
    """What was run at one set of settings.

    Attributes:
        settings: those that all its records share, and the precision and output gate of most.
        groups: by size and data; the narrowest of Zoology's own, matched by state, first.
        ablations: records of one changed choice, in words.
        looked_often: records of more looks at the milestone than most have, to tell how soon models learn; no part of
            ``groups``.
        records: all that count.
    """

    settings: dict[str, Any]
    groups: list[Group]
    ablations: dict[str, list[Record]]
    looked_often: list[Record]
    records: list[Record]

    @property
    def slices(self) -> list[Slice]:
        """Tested."""
        return [(length, pairs) for length, pairs in self.settings["scale"]["tested"]]

    @property
    def trained(self) -> Slice:
        """The longest row and the most pairs that were trained on."""
        segments = self.settings["scale"]["trained"]
        return max(s[0] for s in segments), max(s[1] for s in segments)

    @property
    def beyond(self) -> list[Slice]:
        """Slices longer than any training row, or with more pairs."""
        longest, most = self.trained
        return [(length, pairs) for length, pairs in self.slices if length > longest or pairs > most]


def beside(records: Records) -> Records:
    """The study's records in the same folder as others."""
    return Records(records.path.with_name("mqar.jsonl"))


def studies(records: Records) -> list[Study]:
    """What was run, a study for every setting that its records share; that of most records first.

    One is left out where a longer training has all of its models, sizes and data.
    """
    every = [record for record in records.all() if record.experiment == EXPERIMENT]
    kinds = list({json.dumps(_shared(record), sort_keys=True): _shared(record) for record in every}.values())
    found = [_study(every, settings) for settings in kinds]
    return sorted(
        (one for one in found if not any(_covers(other, one) for other in found)), key=lambda one: -len(one.records)
    )


def _covers(other: Study, one: Study) -> bool:
    """Whether ``other`` trained all that ``one`` did, and longer."""
    asked, given = ({(g.width, g.matched, g.data, model) for g in s.groups for model in g.arms} for s in (one, other))
    return other.settings["steps"] > one.settings["steps"] and asked <= given and bool(asked)


def _study(every: list[Record], settings: dict[str, Any]) -> Study:
    same = [record for record in every if _shared(record) == settings]
    usual = Counter(record.settings["evaluate_every"] for record in same).most_common(1)[0][0]
    told: list[Record] = []
    often: list[Record] = []
    for record in same:
        (often if record.settings["evaluate_every"] < usual else told).append(record)
    precision = Counter(record.settings["precision"] for record in told).most_common(1)[0][0]
    gates = Counter(_gate(record.settings) for record in told if record.name != ATTENTION)
    gate = gates.most_common(1)[0][0] if gates else None
    plain: dict[tuple[int, str, str], list[Record]] = {}
    ablations: dict[str, list[Record]] = {}
    for record in told:
        s = record.settings
        if words := changed(s, precision, gate):
            ablations.setdefault(words, []).append(record)
        else:
            plain.setdefault((s["hidden_size"], s["matched"], s["data"]), []).append(record)
    groups = [Group(*key, _arms(plain[key])) for key in sorted(plain, key=_order)]
    return Study(settings | {"precision": precision, "output_gate": gate}, groups, ablations, often, same)


def changed(settings: dict[str, Any], precision: str, gate: str | None = None) -> str:
    """What an ablation changes, in words; empty for a record that is none.

    Args:
        settings: of the record.
        precision: that of most records.
        gate: the output gate that most records name; ``None``: they leave it to the layer.
    """
    said = []
    if settings["model"] != ATTENTION and _gate(settings) is None and gate is not None:
        said.append("output gate by default")
    for name, value in settings["changes"].items():
        if name == "output_gate" and value == gate:
            continue
        shown = value["name"] if isinstance(value, dict) and "name" in value else value
        said.append(f"{name.replace('_', ' ')} {shown}")
    if settings["chunk_size"] is not None:
        said.append(f"chunks of {settings['chunk_size']} tokens")
    if settings["precision"] != precision:
        said.append(settings["precision"])
    return ", ".join(said)


def mean(numbers: Sequence[float | int]) -> float | int:
    """Of the seeds."""
    return sum(numbers) / len(numbers)


def _gate(settings: dict[str, Any]) -> str | None:
    gate: str | None = settings["changes"].get("output_gate")
    return gate


def _shared(record: Record) -> dict[str, Any]:
    return {name: record.settings[name] for name in SHARED}


def _order(key: tuple[int, str, str]) -> tuple[bool, bool, int, str]:
    width, matched, data = key
    return data != PLAIN, matched != MATCHED[0], width, data


def _arms(records: list[Record]) -> dict[str, Arm]:
    names = [name for name in MODELS if any(record.name == name for record in records)]
    names += sorted({record.name for record in records} - set(MODELS))
    return {name: _arm(name, [record for record in records if record.name == name]) for name in names}


def _arm(model: str, records: list[Record]) -> Arm:
    first = min(record.settings["seed"] for record in records)
    tried = {r.settings["learning_rate"]: _score(r) for r in records if r.settings["seed"] == first}
    scores = {rate: score for rate, score in sorted(tried.items()) if score is not None}
    best = max(scores, key=lambda rate: scores[rate]) if scores else None
    at_best = {r.settings["seed"]: r for r in records if r.settings["learning_rate"] == best}
    kept = [at_best[seed] for seed in sorted(at_best) if "diverged" not in at_best[seed].figures]
    diverged = [seed for seed in sorted(at_best) if "diverged" in at_best[seed].figures]
    return Arm(model, dict(sorted(tried.items())), best, kept, diverged)


def _score(record: Record) -> float | int | None:
    """What learning rates are compared by, on rows apart from the test's."""
    if "diverged" in record.figures:
        return None
    return mean([right for *_, right in record.figures["choice"]])
