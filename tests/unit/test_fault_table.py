"""The table of faults names tests that exist, each once."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TABLE = TESTS.parent / "docs" / "faults.md"
LEAST = 20


def test_every_row_is_a_test():
    named = re.findall(r"`(test_\w+)` \|$", TABLE.read_text(encoding="utf-8"), re.MULTILINE)
    rows = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][2:]
    assert len(named) == len(rows) >= LEAST
    assert len(set(named)) == len(named)
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    assert [name for name in named if f"def {name}(" not in text] == []
