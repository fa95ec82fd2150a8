"""The table of CHANGELOG.md can be counted again, and its columns are of the same things."""

import re

from tests import house

TABLE = house.CHANGELOG.read_text()
SOURCES = {
    "vitdeploy/a.py": "found = 1\nfoundation = {}\n",
    "vitdeploy/room/b.py": "x: dict[str, Any] = {}  # found\n\n\n\n",
    "vitdeploy/room/inner/c.py": "",
}


def test_counts() -> None:
    numbers = house.count_house(SOURCES)
    assert list(numbers.values()) == ["6", "3", "1", "2", "2", "4", "2", "1"]


def test_the_table_has_a_row_for_every_count_and_is_filled_in_its_last_column() -> None:
    numbers = house.count_house(SOURCES)
    text = house.fill_table(TABLE, numbers)
    for name, number in numbers.items():
        before, after = re.search(rf"^\| {re.escape(name)} \| ([^|]+) \| ([^|]+) \|$", text, re.M).groups()
        assert before in TABLE
        assert after == number
    assert text.count("\n") == TABLE.count("\n")
    assert house.fill_table(text, numbers) == text


def test_the_working_tree_is_what_is_counted() -> None:
    sources = house.read_sources()
    assert "vitdeploy/errors.py" in sources
    assert all(path.startswith("vitdeploy/") for path in sources)
