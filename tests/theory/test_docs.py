"""The tags of docs/math.md and the references of the code are held together."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MATH = (ROOT / "docs" / "math.md").read_text(encoding="utf-8")
TAGS = [int(n) for n in re.findall(r"\\tag\{(\d+)\}", MATH)]
HEADINGS = set(re.findall(r"^#{2,4} (\d+(?:\.\d+)*)\.? ", MATH, flags=re.MULTILINE))


def found_in_code(pattern):
    """Every match of ``pattern`` in the package, with the files that hold it."""
    found = {}
    for path in sorted((ROOT / "src" / "bayesmem").rglob("*.py")):
        for match in re.findall(pattern, path.read_text(encoding="utf-8")):
            found.setdefault(match, set()).add(path.name)
    return found


def test_equations_are_numbered_in_order():
    assert list(range(1, len(TAGS) + 1)) == TAGS


def test_every_equation_of_the_code_is_in_the_document():
    cited = found_in_code(r"Eq\. \((\d+)\)")
    assert set(range(1, 11)) <= {int(n) for n in cited}
    assert {n: files for n, files in cited.items() if int(n) not in TAGS} == {}


def test_every_section_that_the_code_names_exists():
    cited = found_in_code(r"docs/math\.md\s+section\s+(\d+(?:\.\d+)*)")
    assert {"3", "4", "6"} <= set(cited)
    assert {section: files for section, files in cited.items() if section not in HEADINGS} == {}


def test_sections_and_equations_within_the_document_exist():
    sections = re.findall(r"\bsection (\d+(?:\.\d+)*)", MATH)
    assert [section for section in sections if section not in HEADINGS] == []
    assert [n for n in re.findall(r"(?<![\w^])\((\d{1,2})\)", MATH) if int(n) not in TAGS] == []


def test_mathematics_is_balanced():
    """Dollars pair up in every line, and braces in every formula: what GitHub needs to render them."""
    for line in MATH.splitlines():
        assert line.count("$") % 2 == 0, line
        for formula in re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", line):
            body = "".join(formula)
            assert body.count("{") == body.count("}"), body
            assert body.count(r"\left") == body.count(r"\right"), body
