"""The zoo on the command line and in the docs."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from bayesmem import cli
from bayesmem.design import ZOO
from bayesmem.design.table import markdown, state_bytes
from bayesmem.types import Belief, MixtureBelief

DOCS = Path(__file__).parents[2] / "docs"


def shown(*arguments: str):
    return CliRunner().invoke(cli.app, ["designs", *arguments])


def test_the_page_in_the_docs_is_that_of_the_code():
    """``bayesmem designs --markdown > docs/designs.md`` writes it anew."""
    assert (DOCS / "designs.md").read_text(encoding="utf-8") == markdown() == shown("--markdown").output


@pytest.mark.parametrize("name", ZOO)
def test_state_memory_is_what_the_filter_carries(name):
    model, key_dim, value_dim, length = ZOO[name], 6, 5, 3
    measurements = length * getattr(getattr(model, "write", None), "per_token", 1)
    sizes = {"B": 1, "T": length, "N": measurements, "H": 1, "K": key_dim, "V": value_dim}
    inputs = {
        x.name: torch.full([sizes[axis] for axis in x.axes.split()], -0.1 if x.name.startswith("log") else 0.5)
        for x in model.recurrence.inputs
    }
    q, k = torch.eye(6)[:length].view(1, length, 1, 6), torch.eye(6)[:measurements].view(1, measurements, 1, 6)
    v = torch.ones(1, measurements, 1, value_dim)
    tied = model.name == "hgrn2"  # its keys are its gates
    belief = model.filter(q, None if tied else k, v, outputs=("final_belief",), **inputs).final_belief
    assert carried(belief) == state_bytes(model, key_dim, value_dim)


def carried(belief: Belief | MixtureBelief) -> int:
    if isinstance(belief, MixtureBelief):
        return sum(map(carried, belief.parts)) + belief.log_weights.nbytes
    return belief.mean.nbytes + (0 if belief.cov is None else belief.cov.nbytes)


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
