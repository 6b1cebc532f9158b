"""Adds the tutorial, a notebook, to the documentation site as a page; the tests execute it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `tutorial.md` beside the notebook."""
    cells = nbformat.read(Path(config.docs_dir) / "tutorial.ipynb", as_version=4).cells
    texts = [cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```" for cell in cells]
    files.append(File.generated(config, "tutorial.md", content="\n\n".join(texts)))
    return files
