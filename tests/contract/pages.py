"""Every README.md of the project, and the blocks and commands on it."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("vitdeploy", "recipes", "calibration", "tests")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md")))
}
TOP = PAGES["README.md"]
BLOCKS = [(page, *block) for page, text in PAGES.items() for block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)]
LINES = [(page, line) for page, language, block in BLOCKS if language == "bash" for line in block.splitlines() if line.strip()]
COMMANDS = {page: [line for other, line in LINES if other == page and line.startswith("vitdeploy ")] for page in PAGES}
