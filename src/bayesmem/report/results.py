"""``docs/results.md``: the study as a page of Markdown, every number from the records."""

from os.path import relpath
from pathlib import Path
from textwrap import fill

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayesmem.report import bench, distill, language, models, mqar, recall_study
from bayesmem.report.bench_data import beside
from bayesmem.report.collision import alt_text
from bayesmem.report.collision_words import sections
from bayesmem.report.records import Records
from bayesmem.report.verdicts import KINDS, SWEEPS, sweeps, verdicts


def markdown(records: Records, path: Path, images: Path) -> str:
    """The text of the page.

    Args:
        records: of ``bayesmem run collision``, all sweeps; a ``bench.jsonl`` beside them adds the benchmark.
        path: where the page will lie, for its links.
        images: folder of the pictures.

    Raises:
        ValueError: a sweep that was not run.
    """
    found = sweeps(records)
    if missing := [name for name in SWEEPS if name not in found]:
        raise ValueError(f"{records.path} has no sweep {', '.join(missing)}; run `bayesmem run collision` to the end.")
    curves = [curve for record in found.values() for curve in record.figures["curves"]]
    last = list(found.values())[-1]
    environment = Environment(
        loader=PackageLoader("bayesmem.report"), undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    where = relpath(images, path.parent)
    noise = last.settings["noise_var"]
    return environment.get_template("results.md.j2").render(
        command=f"bayesmem report {_shown(records.path)} --pictures {_shown(images)} --results {_shown(path)}",
        source=relpath(records.path, path.parent),
        images=where,
        seconds=round(sum(record.figures["seconds"] for record in found.values())),
        context=last.context,
        noise=f"{noise:g}",
        beta=f"{1 / (1 + noise):g}",
        parts=[
            text
            for text in (
                recall_study.section(recall_study.beside(records), path, images),
                mqar.section(mqar.beside(records), path, images),
                distill.section(distill.beside(records), path, images),
                models.section(records, path),
                language.section(language.beside(records), path, images),
                bench.section(beside(records), path, images),
            )
            if text
        ],
        verdicts=verdicts(found),
        points={kind: sum(len(c["points"]) for c in curves if c["kind"] == kind) for kind in KINDS},
        rules=len({c["rule"] for c in curves}),
        sections=[
            {
                "title": section.title,
                "paragraphs": [_filled(text) for text in section.paragraphs],
                "alt": alt_text(section.name),
                "picture": "collision" if section.name == "collision" else f"collision_{section.name}",
            }
            for section in sections(found)
        ],
    )


def _filled(text: str) -> str:
    return fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _shown(path: Path) -> str:
    """A path as one would type it at the repository's root."""
    here = Path.cwd().resolve()
    full = path.resolve()
    return str(full.relative_to(here) if full.is_relative_to(here) else path)
