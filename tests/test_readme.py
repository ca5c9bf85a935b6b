"""The README's code runs as written, and it stays short."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_code_runs(number, capsys):
    exec(BLOCKS[number], {})


def test_it_is_short_and_its_links_resolve():
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    assert len(links) > 4
    for link in links:
        assert (README.parent / link).exists(), link
