"""docs/extending.md runs as written, from top to bottom."""

import re
from pathlib import Path

from bayesmem.design import ZOO

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_it_runs(capsys):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert len(blocks) > 6
    assert namespace["BAYESIAN_KDA"] not in ZOO.values()  # it adds what is not there yet
    said = capsys.readouterr().out
    assert said.startswith("bayesian_kda\n")
    assert "no: covariance='reset' puts the prior back at every token, so PriorMixing(" in said


def test_its_links_resolve():
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / link).exists(), link
