"""The page as one HTML file: its text, its style, its scripts, the script of the plots, and the facts of a study."""

from __future__ import annotations

import base64
import gzip
import html
import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from collections.abc import Mapping

ASSETS = files("search.results.page") / "assets"
SCRIPTS = "format", "state", "scatter", "member", "layers", "fits", "table", "course", "start"  # in this order


def page(facts: Mapping[str, Any], refresh_seconds: float | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    facts
        What it shows, as `search.results.page.facts.facts` returns it.
    refresh_seconds
        How often the page loads itself again, while a run goes on; None for never.
    """
    scripts = "\n".join((ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    parts = {
        "TITLE": html.escape(f"{facts['name']}: the front"),
        "STYLE": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": scripts,
        "PLOTS": _packed(get_plotlyjs()),
        "FACTS": _json({**facts, "refresh": refresh_seconds}),
    }
    text = (ASSETS / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        before, mark, after = text.partition(f"<!--{name}-->")
        assert mark, f"page.html has no place for {name}"
        text = before + part + after
    return text


def _packed(script: str) -> str:
    """Return a script compressed, as text; the browser unpacks it. The page is less than half as large with it."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def _json(content: Mapping[str, Any]) -> str:
    """Return content as JSON that no HTML parser takes for the end of a script."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")
