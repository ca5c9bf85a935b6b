"""The zoo on the command line and in the docs."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from bayesmem import cli
from bayesmem.design import ZOO
from bayesmem.design.table import markdown

DOCS = Path(__file__).parents[2] / "docs"


def shown(*arguments: str):
    return CliRunner().invoke(cli.app, ["designs", *arguments])


def test_the_page_in_the_docs_is_that_of_the_code():
    """``bayesmem designs --markdown > docs/designs.md`` writes it anew."""
    assert (DOCS / "designs.md").read_text(encoding="utf-8") == markdown() == shown("--markdown").output


def test_every_design_is_listed():
    listed = [line.split()[0] for line in shown().output.splitlines() if line and not line.startswith(" ")]
    assert listed[: len(ZOO)] == list(ZOO)


def test_one_design_in_full():
    assert shown("mesanet").output == f"{ZOO['mesanet']}\n"
    assert shown("mixture", "--latex").output.startswith("\\begin{aligned}")


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nothing"], "design is 'nothing'"), (["--latex"], "without a design")]
)
def test_bad_requests_are_refused(arguments, said):
    assert said in str(shown(*arguments).exception)
