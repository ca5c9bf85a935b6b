"""The language study as a part of docs/results.md: Markdown, every number from the records of ``run language``."""

from os.path import relpath
from pathlib import Path
from textwrap import fill
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report.language_data import BASE, EXPERIMENT, SEEDS, Arm, Study, differences, mean, study
from bayesmem.report.language_plots import ALTS, drawn, pictures
from bayesmem.report.records import Records

__all__ = ["EXPERIMENT", "beside", "pictures", "section"]

TITLES = {
    "state": "Equal state, equal parameters",
    "parameters": "Equal heads, equal parameters",
}


def beside(records: Records) -> Records:
    """The study's records in the same folder as others."""
    return Records(records.path.with_name("language.jsonl"))


def section(records: Records, path: Path, images: Path) -> str:
    """The study's part of a Markdown page; empty where nothing was run.

    Args:
        records: of ``bayesmem run language``.
        path: where the page will lie, for its links.
        images: folder of the pictures.
    """
    found = study(records)
    if found is None:
        return ""
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    contexts = [record.context for record in found.records]
    return environment.get_template("language.md.j2").render(
        source=relpath(records.path, path.parent),
        images=relpath(images, path.parent),
        pictures=ALTS if drawn(found) else {},
        filled=lambda text: fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False),
        shape=found.settings["shape"],
        recipe=found.settings["recipe"],
        vocab=sorted({record.figures["vocab_size"] for record in found.records}),
        tested=[
            f"{count:,}"
            for count in sorted({r.figures["tested_tokens"] for r in found.records if "tested_tokens" in r.figures})
        ],
        seeds=SEEDS,
        devices=sorted({context["device"] for context in contexts}),
        commits=list(dict.fromkeys(context["commit"] for context in contexts)),
        context=contexts[-1],
        jobs=len(found.records),
        left_out=found.left_out,
        heads=[f"{low:,} to {high:,}" for low, high in found.bins],
        groups=[_group(found, matched, arms) for matched, arms in found.groups.items()],
    )


def verdict(arms: dict[str, Arm]) -> list[str]:
    """How the Bayesian Layer stands to each of the others, in sentences."""
    base = arms.get(BASE)
    if base is None or not base.rows:
        return [f"`{BASE}` has no result here, so that nothing can be said for or against it."]
    said = []
    for name, arm in arms.items():
        if name == BASE or not arm.rows:
            continue
        numbers = differences(arm, base)
        if not numbers:
            said.append(f"`{name}` shares no seed with `{BASE}`.")
            continue
        middle = mean(numbers)
        word = "fewer" if middle > 0 else "more"
        text = f"`{BASE}` takes {abs(middle):.4f} bits per byte {word} than `{name}`"
        if len(numbers) == 1:
            said.append(f"{text} (one seed: this settles nothing).")
        elif min(numbers) > 0 or max(numbers) < 0:
            least, most = sorted(abs(number) for number in (min(numbers), max(numbers)))
            said.append(f"{text}, on each of {len(numbers)} seeds ({least:.4f} to {most:.4f}).")
        else:
            said.append(f"{text} on average of {len(numbers)} seeds, whose differences are of both signs.")
    return said


def _group(found: Study, matched: str, arms: dict[str, Arm]) -> dict[str, Any]:
    shown = [arm for arm in arms.values() if arm.rows]
    least = min((mean(list(arm.bits().values())) for arm in shown), default=0.0)
    return {
        "title": TITLES[matched],
        "rows": [
            [
                f"`{arm.model}`",
                f"{arm.figures['head'][0]} × {arm.figures['head'][1]}",
                f"{arm.figures['intermediate_size']:,}",
                f"{arm.figures['parameters']:,} ({100 * arm.figures['parameters_of_base']:.1f}%)",
                f"{arm.figures['state_per_layer']:,} ({100 * arm.figures['state_of_base']:.1f}%)",
                f"{arm.best:g}",
                str(len(arm.rows)) + (f" ({len(arm.diverged)} diverged)" if arm.diverged else ""),
                _cell(list(arm.bits().values()), least),
            ]
            for arm in shown
        ],
        "verdict": verdict(arms),
        "positions": [[f"`{arm.model}`", *(_mean(list(arm.bits(at).values())) for at in found.bins)] for arm in shown],
        "lost": [arm.model for arm in arms.values() if arm.best is None],
        **_rates(arms),
        "few": [f"{arm.model} ({len(arm.rows)})" for arm in shown if len(arm.rows) + len(arm.diverged) < SEEDS],
    }


def _cell(numbers: list[float | int], least: float | int) -> str:
    middle = f"{mean(numbers):.4f}"
    text = f"**{middle}**" if middle == f"{least:.4f}" else middle
    return text if len(numbers) == 1 else f"{text} ({min(numbers):.4f} to {max(numbers):.4f})"


def _mean(numbers: list[float | int]) -> str:
    return f"{mean(numbers):.4f}" if numbers else "not tested"


def _rates(arms: dict[str, Arm]) -> dict[str, Any]:
    """The table of learning rates, where more than one was tried."""
    rates = sorted({rate for arm in arms.values() for rate in arm.rates})
    if len(rates) < 2:
        return {"rates": [], "tried": [], "ends": [], "every": []}
    tried = []
    for arm in arms.values():
        cells = []
        for rate in rates:
            score = arm.rates.get(rate)
            text = "not run" if rate not in arm.rates else "diverged" if score is None else f"{score:.4f}"
            cells.append(f"**{text}**" if rate == arm.best else text)
        tried.append([f"`{arm.model}`", *cells])
    ends = [a.model for a in arms.values() if len(a.rates) > 1 and a.best in (min(a.rates), max(a.rates))]
    every = [[f"`{a.model}`", *(_seeds(list(a.every.get(rate, {}).values())) for rate in rates)] for a in arms.values()]
    return {"rates": [f"{rate:g}" for rate in rates], "tried": tried, "ends": ends, "every": every}


def _seeds(numbers: list[float | int]) -> str:
    """Mean over seeds, and of how many."""
    return f"{mean(numbers):.4f} ({len(numbers)})" if numbers else "not run"
