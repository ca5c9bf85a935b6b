"""A distillation beside its controls as a part of docs/results.md: Markdown, every number from the records."""

from collections.abc import Mapping, Sequence
from os.path import relpath
from pathlib import Path
from statistics import mean
from textwrap import fill
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report import distill_plots as plots
from bayesmem.report import distill_retrieval as words
from bayesmem.report import ruler, ruler_plots
from bayesmem.report.distill_data import (
    ARMS,
    EXPERIMENT,
    TEACHER,
    Retrieval,
    Scored,
    Study,
    beside,
    evaluated,
    evaluations,
    fingerprints,
    studies,
)
from bayesmem.report.plots import Picture
from bayesmem.report.records import Record, Records

__all__ = ["EXPERIMENT", "beside", "pictures", "section", "studies", "write"]


def write(records: Records, folder: Path) -> Path | None:
    """The part as a page of its own, ``distill.md`` with its pictures beside it; nothing where nothing was distilled.

    Raises:
        ValueError: arms that were asked different documents.
    """
    if not studies(records):
        return None
    path, images = folder / "distill.md", folder / "img"
    text = section(records, path, images)
    images.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures(records).items():
        (images / f"{name}-light.svg").write_text(picture.light, encoding="utf-8")
        (images / f"{name}-dark.svg").write_text(picture.dark, encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    return path


def section(records: Records, path: Path, images: Path) -> str:
    """The distillations' part of a Markdown page, and RULER of other checkpoints; empty where there is neither.

    Args:
        records: of ``bayesmem distill``, those of several seeds one after the other in a file; RULER's are in
            ``ruler.jsonl`` beside it or in the same file, whatever their labels: arms are known by their weights.
        path: where the page will lie, for its links.
        images: folder of the pictures.

    Raises:
        ValueError: arms that were asked different documents.
    """
    asked, found = evaluations(records), studies(records)
    scored = evaluated(asked)
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    shared = {
        "images": relpath(images, path.parent),
        "filled": lambda text: fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False),
    }
    parts = []
    if found:
        sources = dict.fromkeys([records.path, asked.path] if scored else [records.path])
        links = " and ".join(f"[{link}]({link})" for link in (relpath(source, path.parent) for source in sources))
        studied = [_told(study, scored) for study in found]
        parts.append(
            environment.get_template("distill.md.j2").render(links=links, limit=words.LIMIT, studies=studied, **shared)
        )
    if rest := ruler.section(asked, path, images, apart=fingerprints(records)).strip():
        parts.append(f"## RULER{', other checkpoints' if found else ''}\n\n{rest}\n")
    return "\n".join(parts)


def pictures(records: Records) -> dict[str, Picture]:
    """Of every study training, retrieval by length and heat maps; RULER's of other checkpoints."""
    asked, drawn = evaluations(records), dict[str, Picture]()
    scored = evaluated(asked)
    for study in studies(records):
        drawn |= plots.pictures(study, Retrieval.of(study, scored))
    return drawn | ruler_plots.pictures(asked, apart=fingerprints(records))


def _told(study: Study, scored: Mapping[str, Scored]) -> dict[str, Any]:
    one, retrieval = study.any, Retrieval.of(study, scored)
    run, options = one.settings["run"], one.settings["options"]
    alts = {study.name: plots.training_alt(study)}
    if retrieval.arms:
        alts[f"{study.name}_retrieval"] = plots.by_length_alt(retrieval)
        alts[f"{study.name}_ruler"] = f"Percent right by task and length: {', '.join(retrieval.arms)}"
    return {
        "seeds": list(study.seeds),
        "kind": one.settings["kind"],
        "parameters": f"{one.figures['parameters']:,}",
        "trained": f"{one.figures['trained']:,}",
        "trains": options["trains"],
        "tokens": f"{one.figures['steps'] * run['batch_size'] * run['length']:,}",
        "length": f"{run['length']:,}",
        "retention": _begun(one),
        "learning_rate": f"{run['learning_rate']:g}",
        "align": options["align"],
        "mix": {name: _knots(knots) for name, knots in options["mix"].items()},
        "moved": f"{one.figures['beginning']['kl']:.2g}",
        "devices": one.settings["devices"],
        "context": one.context,
        "commits": sorted({r.context["commit"] for arms in study.seeds.values() for r in arms.values()}),
        "teacher": _teacher(study),
        "rows": [_row(study, name) for name in (TEACHER, *ARMS) if study.of(name)],
        "costs": words.costs(study),
        "retrieval": words.told(study, retrieval),
        "beyond": bool(retrieval.beyond),
        "claims": words.claims(study, retrieval),
        "pictures": alts,
    }


def _begun(student: Record) -> str:
    """Certainty kept at first: as it was asked for, or as the student had it where the default was taken."""
    asked = student.settings["retention"]
    if asked is None:
        asked = mean(layer[0] for layer in student.figures["beginning"]["retention"])
    return f"{asked:.3g}"


def _teacher(study: Study) -> dict[str, str]:
    """Its held-out figures, and how it was trained where ``bayesmem train`` says so."""
    found = list(study.of(TEACHER).values())
    if not found:
        return {}
    figures = found[0].figures
    told = {"bits": f"{figures['bits_per_byte']:.4f}", "perplexity": f"{figures['perplexity']:.3f}", "trained": ""}
    if run := figures.get("trained_as"):
        told["trained"] = (
            f"trained by `bayesmem train` on {run['tokens']:,} tokens in rows of {run['length']:,} "
            f"({', '.join(run['data'])})"
        )
    return told


def _row(study: Study, name: str) -> dict[str, str]:
    found = study.of(name)
    figures = [record.figures for record in found.values()]
    cost = [
        100 * (record.figures["perplexity"] / study.seeds[seed][TEACHER].figures["perplexity"] - 1)
        for seed, record in found.items()
        if name != TEACHER and TEACHER in study.seeds[seed]
    ]
    layers = [f["ending"]["retention"] for f in figures if "retention" in f.get("ending", {})]
    return {
        "name": name,
        "steps": _mean(figures, "steps", ",.0f"),
        "flops": _mean(figures, "flops", ".4g"),
        "seconds": _mean(figures, "device_seconds", ",.1f"),
        "bits": words.with_interval([f["bits_per_byte"] for f in figures], ".4f"),
        "perplexity": _mean(figures, "perplexity", ".3f"),
        "cost": words.with_interval(cost, "+.2f", "%") if cost else "",
        "retention": f"{mean(layer[0] for one in layers for layer in one):.3f}" if layers else "",
    }


def _mean(figures: Sequence[Mapping[str, Any]], name: str, form: str) -> str:
    values = [f[name] for f in figures if name in f]
    return format(mean(values), form) if values else ""


def _knots(knots: Sequence[Sequence[float | int]]) -> str:
    if len({weight for _, weight in knots}) == 1:
        return f"{knots[0][1]:g}"
    return ", ".join(f"{weight:g} at {share:.0%}" for share, weight in knots)
