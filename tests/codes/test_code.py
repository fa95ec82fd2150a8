"""What `vitdeploy explain` says: sentences, and examples that are printed somewhere."""

import ast
from pathlib import Path

import pytest

import vitdeploy
from vitdeploy import codes
from vitdeploy.codes import CODES

ROOT = Path(vitdeploy.__file__).parent


def test_no_code_stands_in_two_files():
    files = (codes.usage, codes.files_and_weights, codes.images_and_data, codes.environment, codes.devices, codes.trust)
    assert sum(len(file.CODES) for file in files) == len(CODES)


def test_explanations_are_sentences():
    for name, code in CODES.items():
        for text in (code.meaning, code.remedy):
            assert text[0].isupper() or text[0] in "`-", name
            assert text.endswith("."), name


def messages(code: str) -> list[str]:
    """The constant parts of texts in the modules that raise a code, as far as they tell one message from another."""
    texts = []
    for path in ROOT.rglob("*.py"):
        source = path.read_text()
        raises = f'"{code}"' in source or (code == "VD3027" and "refuse(" in source)  # whose code stands in `reader.refuse`
        if raises and path.parent.name != "codes":
            constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
            texts += [text for text in constants if isinstance(text, str) and 9 <= len(text) <= 120]
    return texts


@pytest.mark.parametrize("code", CODES)
def test_an_example_is_a_line_that_is_written(code):
    example = CODES[code].example
    assert example.isprintable()
    assert any(text in example for text in messages(code)), example
