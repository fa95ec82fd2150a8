"""The house in numbers, for CHANGELOG.md: how large the package is, and what its style asks to be rare.

python -m tests.house [REVISION]        print the table, of the working tree or of a commit
python -m tests.house --write           fill the column `after` of CHANGELOG.md
"""

from __future__ import annotations

import io
import re
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CHANGELOG = ROOT / "CHANGELOG.md"


def read_sources(revision: str = "") -> dict[str, str]:
    """The package's modules: path below the repository to text."""
    if not revision:
        return {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "vitdeploy").rglob("*.py"))}
    archive = subprocess.run(["git", "archive", revision, "vitdeploy"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = sorted(member.name for member in tar if member.isfile() and member.name.endswith(".py"))
        return {name: stream.read().decode() for name in members if (stream := tar.extractfile(name))}


def count_house(sources: dict[str, str]) -> dict[str, str]:
    """What is counted to its number, as the table has it."""
    lengths = [text.count("\n") for text in sources.values()]
    rooms = {path.rpartition("/")[0] for path in sources} - {"vitdeploy"}

    def count(pattern: str) -> str:
        return str(sum(len(re.findall(pattern, text)) for text in sources.values()))

    return {
        "lines of the package": f"{sum(lengths):,}",
        "modules": str(len(lengths)),
        "modules at the root": str(sum(path.count("/") == 1 for path in sources)),
        "rooms, rooms in rooms included": str(len(rooms)),
        "lines of the median module": f"{statistics.median(lengths):g}",
        "lines of the longest module": str(max(lengths)),
        "the word `found`": count(r"\bfound\b"),
        "`dict[str, Any]`": count(r"dict\[str, Any\]"),
    }


def fill_table(text: str, numbers: dict[str, str]) -> str:
    """A text with the last cell of every row that begins with one of the names filled; other rows stay."""
    for name, number in numbers.items():
        text, filled = re.subn(rf"^(\| {re.escape(name)} \| [^|]* \|)[^|\n]*\|$", rf"\1 {number} |", text, count=1, flags=re.M)
        assert filled, f"no row {name!r}"
    return text


def main() -> None:
    """Print the table, or write it."""
    arguments = sys.argv[1:]
    if arguments == ["--write"]:
        CHANGELOG.write_text(fill_table(CHANGELOG.read_text(), count_house(read_sources())))
        return
    for name, number in count_house(read_sources(*arguments[:1])).items():
        print(f"{name:32} {number:>8}")


if __name__ == "__main__":
    main()
