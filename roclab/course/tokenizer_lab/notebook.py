"""Tokenizer_Lab.md → a notebook, executed, and a page of it.

The source is Markdown, so that a change to the notebook reads as a change of text: prose between fences is a Markdown
cell, each ```python block a code cell. The block that begins with "# Parameters" gets the student ID.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from roclab.core.exceptions import RocLabError

_FENCE = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
CELL_SECONDS = 300


def require() -> None:
    """Raises RocLabError that names the extra, if the libraries for notebooks are not installed."""
    try:
        import ipykernel  # noqa: F401
        import matplotlib  # noqa: F401
        import nbclient  # noqa: F401
        import nbformat  # noqa: F401
    except ImportError as error:
        raise RocLabError(f'{error.name} is missing: python -m pip install "roclab[lab]"') from None


def build(student_id: str) -> Any:
    """The notebook, not executed, with this ID in its parameters cell."""
    import nbformat.v4 as v4

    source = resources.files("roclab.course.tokenizer_lab").joinpath("Tokenizer_Lab.md").read_text("utf-8")
    cells = []
    at = 0
    for block in _FENCE.finditer(source):
        if prose := source[at : block.start()].strip():
            cells.append(v4.new_markdown_cell(prose))
        code = block.group(1).rstrip("\n")
        if code.startswith("# Parameters"):
            lines = code.split("\n")
            lines = [f"STUDENT_ID = {student_id!r}" if line.startswith("STUDENT_ID = ") else line for line in lines]
            code = "\n".join(lines)
            cells.append(v4.new_code_cell(code, metadata={"tags": ["parameters"]}))
        else:
            cells.append(v4.new_code_cell(code))
        at = block.end()
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"  # the library's own are random: the same notebook, the same bytes
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def execute(
    notebook: Any,
    folder: Path,
    environment: Mapping[str, str],
    progress: Callable[[Any], Iterator[Any]] = iter,
) -> None:
    """Run every cell in a kernel of this Python, `folder` as its working directory, with `environment` added to ours.
    Raises RocLabError that names the cell which failed and how."""
    import nbclient
    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient.exceptions import CellControlSignal, DeadKernelError

    package = str(Path(__file__).resolve().parents[3])  # the kernel shall import the roclab that is running
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "MPLBACKEND": "agg", **environment, "PYTHONPATH": os.pathsep.join(paths)}
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
            for index, cell in enumerate(progress(notebook.cells)):
                client.execute_cell(cell, index)
    except CellControlSignal as error:  # a cell that raises, or takes too long
        reason = str(error).strip().splitlines()[-1]
        raise RocLabError(f"the notebook's cell {index + 1} fails: {re.sub(chr(27) + r'.*?m', '', reason)}") from None
    except (DeadKernelError, RuntimeError, OSError) as error:
        raise RocLabError(f"the notebook's kernel does not run here: {error}") from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def to_html(notebook: Any, title: str) -> str:
    """The executed notebook as one page that needs nothing from elsewhere. What cells printed is escaped."""
    from markdown_it import MarkdownIt
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    code = HtmlFormatter(cssclass="code")
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(markdown.render(cell.source))
            continue
        parts.append(highlight(cell.source, PythonLexer(), code))
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"<pre>{html.escape(output.text)}</pre>")
            elif picture := output.get("data", {}).get("image/png"):
                data = "".join(picture.split())
                parts.append(f'<img alt="figure" src="data:image/png;base64,{html.escape(data)}">')
            elif text := output.get("data", {}).get("text/plain"):
                parts.append(f"<pre>{html.escape(text)}</pre>")
    style = (
        "body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:16px/1.55 system-ui,sans-serif;color:#222}"
        "pre{overflow-x:auto;padding:.6rem .8rem;font-size:13px;line-height:1.45;border-left:3px solid #9fc5e8}"
        ".code pre{background:#f6f6f6;border-left:3px solid #ccc}img{max-width:100%;display:block;margin:.8rem 0}"
        "h1,h2{line-height:1.2}h2{margin-top:2.2rem}code{font-size:.92em}" + code.get_style_defs(".code")
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
