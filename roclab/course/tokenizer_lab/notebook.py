"""Tokenizer_Lab.md → a notebook, executed, and a page of it.

The source is Markdown, so that a change to the notebook reads as a change of text: prose between fences is a Markdown
cell, each ```python block a code cell. The block that begins with "# Parameters" gets the student ID.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from roclab.core.exceptions import RocLabError
from roclab.core.progress import track
from roclab.report import kit

_FENCE = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
CELL_SECONDS = 300
HERE = Path(__file__).parent


def build(student_id: str) -> Any:
    """The notebook, not executed, with this ID in its parameters cell."""
    import nbformat.v4 as v4

    source = (HERE / "Tokenizer_Lab.md").read_text("utf-8")
    cells = []
    for number, part in enumerate(_FENCE.split(source)):  # prose, code, prose, code, …
        if number % 2 == 0:
            cells += [v4.new_markdown_cell(part.strip())] if part.strip() else []
        elif part.startswith("# Parameters"):
            code = re.sub("^STUDENT_ID = .*", lambda _: f"STUDENT_ID = {student_id!r}", part, flags=re.MULTILINE)
            cells.append(v4.new_code_cell(code.rstrip("\n"), metadata={"tags": ["parameters"]}))
        else:
            cells.append(v4.new_code_cell(part.rstrip("\n")))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the library's own are random: the same notebook, the same bytes
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def execute(notebook: Any, folder: Path, environment: Mapping[str, str]) -> None:
    """Run every cell in a kernel of this Python, `folder` as its working directory, with `environment` added to ours;
    without a PYTHONPATH in it the kernel imports the roclab that is running. Raises RocLabError that names the cell
    which failed and how."""
    import nbclient
    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    paths = [str(HERE.resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": os.pathsep.join(paths), **environment}
    client = nbclient.NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}},
        record_timing=False,
    )  # fmt: skip
    manager = client.create_kernel_manager()
    # This very Python, whatever kernel somebody has installed as "python3".
    manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[], ensure_native_kernel=True)
    if manager.has_trait("transport_encryption") and zmq.has("curve"):  # jupyter_client 8.10 and newer
        manager.transport_encryption = "auto"
    try:
        with client.setup_kernel(env=environment):
            for index, cell in enumerate(track(notebook.cells, "cells")):
                client.execute_cell(cell, index)
    except CellControlSignal as error:  # a cell that raises, or takes too long
        reason = str(error).strip().splitlines()[-1]
        raise RocLabError(f"the notebook's cell {index + 1} fails: {re.sub(chr(27) + r'.*?m', '', reason)}") from None
    except (DeadKernelError, RuntimeError, OSError) as error:
        raise RocLabError(f"the notebook's kernel does not run here: {error}") from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def to_html(notebook: Any, title: str) -> str:
    """The executed notebook as one page that loads nothing. What cells printed is escaped."""
    from markdown_it import MarkdownIt
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    code = HtmlFormatter(cssclass="code")
    return kit.render(
        HERE / "templates" / "notebook.html", title=title, cells=notebook.cells,
        code_style=Markup(code.get_style_defs(".code")), markdown=lambda text: Markup(markdown.render(text)),
        highlighted=lambda source: Markup(highlight(source, PythonLexer(), code)),
    )  # fmt: skip
