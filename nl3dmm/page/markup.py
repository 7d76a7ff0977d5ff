"""HTML from elements: every text and attribute is escaped by the serialiser, none by hand."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
Content: TypeAlias = Element | str | None


def element(tag: str, *content: Content, **attributes: str | None) -> Element:
    """One element; None is left out. A trailing underscore of a name is dropped, others become hyphens."""
    named = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    made = ElementTree.Element(tag, named)
    last = None
    for part in content:
        if isinstance(part, ElementTree.Element):
            made.append(part)
            last = part
        elif part is not None and last is None:
            made.text = (made.text or "") + part
        elif part is not None and last is not None:
            last.tail = (last.tail or "") + part
    return made


def data_block(values: Mapping[str, Any], **attributes: str | None) -> Element:
    """JSON that scripts of the page read and browsers do not run."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return element("script", text, type="application/json", **attributes)


def document(title: str, style: str, script: str, body: Sequence[Element]) -> str:
    """A whole page. Its policy forbids it to load anything, and to run any script but this one."""
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", style),
    )
    # The class is taken away by the script where the browser can draw in 3D.
    page = element("html", head, element("body", *body, element("script", script)), lang="en", class_="no-3d")
    return "<!DOCTYPE html>\n" + ElementTree.tostring(page, encoding="unicode", method="html") + "\n"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
