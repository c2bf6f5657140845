"""docs/trust.md has exactly one row for each tested case."""

import re
from pathlib import Path

from test_malformed_annotations import CONTENTS, FILES
from test_malformed_pictures import RIGHT, WRONG
from test_odd_annotations import CASES

DOCUMENT = Path(__file__).parents[2] / "docs" / "trust.md"
SEVERAL_CASES = 8  # rows at the end of the last table, each with a separate test


def test_every_case_has_a_row():
    text = DOCUMENT.read_text().partition("## Weights and configs")[0]
    rows = [row for row in re.findall(r"^\| (.+?) \| ", text, re.M) if not row.startswith(("annotation file", "odd"))]
    rows = [row for row in rows if row != "picture"]
    cases = [*FILES, *CONTENTS, *WRONG, *CASES, *RIGHT]
    assert rows[: len(cases)] == cases
    assert len(rows) == len(cases) + SEVERAL_CASES
    assert len(cases) >= 40
