"""HTML as a tree, so that a name from a model or from data is text wherever it stands: the writer escapes, nobody else has to."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element, tostring

from vitdeploy.errors import printable

Child = Element | str | None


def make(tag: str, *children: Child, **attributes: str) -> Element:
    """An element.

    Args:
        tag: Of HTML or SVG.
        *children: Elements and texts; None is nothing. Control characters of texts are spelled out.
        **attributes: ``class_`` is ``class``, other ``_`` are ``-``.
    """
    named = {name.rstrip("_").replace("_", "-"): printable(value) for name, value in attributes.items()}
    element = Element(tag, named)
    return add(element, children)


def add(element: Element, children: Iterable[Child]) -> Element:
    """The element, with more children at its end."""
    for child in children:
        if isinstance(child, str):
            text = printable(child)
            if len(element):
                element[-1].tail = (element[-1].tail or "") + text
            else:
                element.text = (element.text or "") + text
        elif child is not None:
            element.append(child)
    return element


def write(root: Element) -> str:
    """The whole document; ends with a line break."""
    return f"<!DOCTYPE html>\n{tostring(root, 'unicode', method='html')}\n"
