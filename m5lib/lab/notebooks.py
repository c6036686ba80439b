"""Run notebooks with papermill, strictly: a parameter that the notebook does not have, or of
another type, is an error before the kernel starts. papermill itself only warns about the first and
injects the second.

From the shell::

    # default: every notebook, in order
    python -m m5lib.lab.notebooks --profile small --data FOLDER [notebook …]
    # 01, 04 and 05, then the result table
    python -m m5lib.lab.notebooks --demo [--data FOLDER]
"""

import argparse
import ast
import base64
import html
import io
import logging
import os
import re
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import nbformat

from m5lib import ROOT, home

DEMO = ("01_", "04_", "05_")


class ParameterError(ValueError):
    """A parameter that the notebook does not have, or of another type than its default."""


class NotebookError(RuntimeError):
    """A notebook that failed: names the notebook, the cell, and the executed copy to look at;
    ``brief`` is one line of it."""

    def __init__(self, notebook: str, cell: object, name: str, value: str, output: Path):
        super().__init__(f"{notebook}: cell {cell}: {name}: {value}; see {output}")
        self.brief = f"cell {cell}: {name}: {(value.strip().splitlines() or [''])[-1]}"


_kernels: weakref.WeakSet = weakref.WeakSet()  # that this process started


def find() -> list[Path]:
    """Every notebook of the project, in order."""
    return sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def named(stem: str) -> Path:
    """The project's notebook of a name. Raises ``FileNotFoundError`` where there is none; the
    message lists them."""
    found = {path.stem: path for path in find()}
    if stem not in found:
        raise FileNotFoundError(f"no notebook {stem!r}; there are {', '.join(found)}")
    return found[stem]


def parameters_of(notebook: str | Path) -> dict[str, object]:
    """Names and defaults in the cell tagged ``parameters``: literals, one assignment a line.

    Raises:
        ParameterError: there is no such cell, or it holds something else.
    """
    cells = [
        c
        for c in nbformat.read(notebook, as_version=4).cells
        if "parameters" in c.metadata.get("tags", [])
    ]
    if len(cells) != 1:
        raise ParameterError(
            f"{notebook}: {len(cells)} cells are tagged 'parameters'; exactly one must be"
        )
    found = {}
    for statement in ast.parse(cells[0].source).body:
        target = (
            statement.targets[0]
            if isinstance(statement, ast.Assign)
            else getattr(statement, "target", None)
        )
        try:
            found[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            raise ParameterError(
                f"{notebook}: line {statement.lineno} of the parameters cell is not `name = "
                "literal`"
            ) from None
    return found


def check(
    notebook: str | Path, given: Mapping[str, object], known: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The given parameters, converted where nothing is lost (an ``int`` for a ``float``).

    Args:
        known: :func:`parameters_of` the notebook, where they were read before.

    Raises:
        ParameterError: an unknown name or a wrong type; the message lists what there is.
    """
    known, checked = parameters_of(notebook) if known is None else known, {}
    for name, value in given.items():
        if name not in known:
            raise ParameterError(
                f"{Path(notebook).name} has no parameter {name!r}; it has {', '.join(known)}"
            )
        wanted = type(known[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise ParameterError(
                f"{Path(notebook).name}: {name} = {value!r} is {type(value).__name__}, but the "
                f"default {known[name]!r} is {wanted.__name__}"
            )
        checked[name] = value
    return checked


def _manager(environment: Mapping[str, str]) -> type:
    """A manager of kernels with these environment variables on top of this process's own."""
    from jupyter_client import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def start_kernel(self, **given) -> None:
            defaults = {"TQDM_MININTERVAL": "10", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
            _kernels.add(self)
            await super().start_kernel(**given, env={**defaults, **os.environ, **environment})

    return Manager


def interrupt() -> None:
    """Press Ctrl-C in every notebook that :func:`run` is running in a thread of this process;
    training then keeps a checkpoint."""
    import asyncio

    with ThreadPoolExecutor(
        1
    ) as pool:  # asyncio.run wants a thread without a loop; in Jupyter the main one has one
        for manager in [m for m in list(_kernels) if m.has_kernel]:
            pool.submit(lambda m: asyncio.run(m.interrupt_kernel()), manager)


def run(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, object] | None = None,
    quiet: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Execute a notebook with the kernel of this Python; the output file is written even when it
    fails.

    May be called by several threads at once: each run has a kernel, which is a process, of its own.

    Args:
        environment: variables for the kernel, on top of those of this process.

    Raises:
        ParameterError: before anything starts.
        NotebookError: a cell raised.
        KeyboardInterrupt: the kernel was interrupted.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    checked = check(notebook, parameters or {})
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    # no cwd: papermill would change the directory of this process, and runs may be parallel
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            checked,
            kernel_name="python3",
            progress_bar=not quiet,
            log_output=not quiet,
            kernel_manager_class=_manager(environment or {}),
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt(
                f"{Path(notebook).name}: {error.evalue or 'interrupted'}"
            ) from None
        raise NotebookError(
            Path(notebook).name, error.exec_count, error.ename, error.evalue, output
        ) from None
    return output


def show_progress() -> None:
    """Print what notebooks print, as they print it (not while ``quiet``)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("traitlets").setLevel(logging.ERROR)


def to_html(notebook: Path) -> Path:
    """An executed notebook as a page beside it."""
    from nbconvert import HTMLExporter

    book = nbformat.read(notebook, as_version=4)
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(
        book, resources={"metadata": {"name": notebook.stem}}
    )
    path = notebook.with_suffix(".html")
    path.write_text(page, encoding="utf-8")
    return path


class Outcome(NamedTuple):
    """What an executed notebook says of itself: ``parameters`` that were given, ``seconds`` (None
    where it does not say), its first figure as a data address (empty where it has none), and the
    error of the cell that failed (empty where none did)."""

    title: str
    question: str
    parameters: dict[str, object]
    seconds: float | None
    error: str
    picture: str


def outcome(notebook: Path, width: int = 480) -> Outcome:
    """Read an executed notebook; the figure is scaled down to ``width`` pixels."""
    book = nbformat.read(notebook, as_version=4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    title, question = (
        re.search(r"^# (.+)$", text, re.M),
        re.search(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|$)", text, re.S),
    )
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    errors = [
        f"{output.ename}: {(output.evalue.strip().splitlines() or [''])[0]}"
        for output in outputs
        if output.output_type == "error"
    ]
    pictures = (
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    )
    about = book.metadata.get("papermill", {})
    return Outcome(
        title[1] if title else notebook.stem,
        question[1].replace("\n", " ") if question else "",
        dict(about.get("parameters", {})),
        about.get("duration"),
        errors[0] if errors else "",
        _thumbnail(next(pictures, ""), width),
    )


def _thumbnail(png: str, width: int) -> str:
    from PIL import Image

    if not png:
        return ""
    image, small = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.thumbnail((width, 4 * width))
    image.save(small, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()


STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
a { color: #0072B2 } img { max-width: 100% } figure { margin: 2rem 0 } figcaption, .quiet { color: #666 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1.2rem }
.card { border: 1px solid #ddd; border-radius: 6px; padding: 1rem } .card h2 { font-size: 1.05rem; margin: 0 0 .4rem }
.card p { margin: .3rem 0; font-size: .9rem; overflow-wrap: anywhere }
.shot { display: block; height: 11rem; overflow: hidden; margin-top: .6rem } .ok { color: #00694d } .failed { color: #b34700 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: right } tbody th { text-align: left; vertical-align: top }
"""  # noqa: E501


def _card(notebook: Path) -> str:
    found, address = outcome(notebook), quote(notebook.with_suffix(".html").name)
    state = (
        f'<span class="failed">failed: {html.escape(found.error)}</span>'
        if found.error
        else '<span class="ok">finished</span>'
    )
    time_ = "" if found.seconds is None else f" · {found.seconds:.0f} s"
    given = " ".join(f"{name}={value}" for name, value in found.parameters.items() if value != "")
    shot = (
        f'<a class="shot" href="{address}"><img src="{found.picture}" alt="first figure"></a>'
        if found.picture
        else ""
    )
    return (
        f'<div class="card"><h2><a href="{address}">{html.escape(found.title)}</a></h2><p>{html.escape(found.question)}</p>'  # noqa: E501
        f'<p>{state}{time_} · <a href="{quote(notebook.name)}">notebook</a></p><p class="quiet">{html.escape(given)}</p>{shot}</div>'  # noqa: E501
    )


def write_index(folder: Path, table: str = "", figures: Sequence[Path] = ()) -> Path:
    """``index.html``: a card with a link for each executed notebook of the folder, a result table,
    figures.

    Needs no server and no network: addresses are relative, style and thumbnails inside.
    """
    cards = []
    for notebook in sorted(folder.glob("*.ipynb")):
        page = notebook.with_suffix(".html")
        if not page.exists() or page.stat().st_mtime < notebook.stat().st_mtime:
            to_html(notebook)
        cards.append(_card(notebook))
    pictures = "".join(
        f'<figure><img loading="lazy" src="{quote(os.path.relpath(f, folder).replace(os.sep, "/"))}" alt="{html.escape(f.stem)}">'  # noqa: E501
        f"<figcaption>{html.escape(f.stem)}</figcaption></figure>"
        for f in figures
    )
    body = f'<h1>What was run</h1><div class="cards">{"".join(cards)}</div>'
    body += (
        f'<h1>Results</h1><div class="wide">{table}</div>{pictures}' if table or pictures else ""
    )
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>m5lib: what was run</title>'  # noqa: E501
    path, temporary = folder / "index.html", folder / "index.html.tmp"
    temporary.write_text(
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>',  # noqa: E501
        encoding="utf-8",
    )
    os.replace(temporary, path)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 1 where a notebook failed (the others still ran)."""
    from m5lib.data.backbones import absolute, choose
    from m5lib.lab import runs

    parser = argparse.ArgumentParser(
        prog="python -m m5lib.lab.notebooks", description="Run notebooks into reports/."
    )
    parser.add_argument("notebook", nargs="*", type=Path, help="notebooks; by default all")
    parser.add_argument(
        "--demo", action="store_true", help="only the main story, then print its results"
    )
    parser.add_argument("--profile", default="small", choices=list(runs.PROFILES))
    parser.add_argument("--record", default="demo", help="name in results/ of what the demo finds")
    parser.add_argument(
        "--data",
        default="",
        help="folder or file of products; by default each notebook's own default",
    )
    parser.add_argument(
        "--extractors",
        default="",
        help="what makes features, such as image=regions:weights.pt; by default the plain ones",
    )
    options = parser.parse_args(arguments)
    show_progress()
    chosen = options.notebook or [n for n in find() if not options.demo or n.name.startswith(DEMO)]
    reports, begun, failed = home("reports"), time.monotonic(), []
    wanted = {"profile": options.profile} | (
        {"data": str(Path(options.data).resolve())} if options.data else {}
    )
    if options.extractors:
        choose(options.extractors)  # a mistyped one costs no run
        wanted["extractors"] = absolute(options.extractors)
    if options.demo:
        wanted["record"] = options.record
    for notebook in chosen:
        given = {name: value for name, value in wanted.items() if name in parameters_of(notebook)}
        print(f"\n=== {notebook.name} ===", flush=True)
        output = reports / notebook.name
        try:
            run(notebook, output, given)
        except NotebookError as error:
            failed.append(str(error))
    _conclude(reports, options.record if options.demo else "")
    for error in failed:
        print(f"FAILED {error}", file=sys.stderr)
    print(
        f"{len(chosen) - len(failed)} of {len(chosen)} notebooks in {time.monotonic() - begun:.0f} "
        f"s; open {reports / 'index.html'}"
    )
    return bool(failed)


def _conclude(reports: Path, record: str) -> None:
    from m5lib.lab import recording

    results = recording.results_folder() / f"{record}.json"
    shown = bool(record) and results.exists()
    if shown:
        print("\n" + recording.headline(results).to_string())
    figures = (
        sorted(
            results.parent.glob(f"{record}_*.png"),
            key=lambda p: (not p.stem.endswith("_front"), p.name),
        )
        if shown
        else []
    )
    write_index(reports, recording.headline(results).to_html(border=0) if shown else "", figures)


if __name__ == "__main__":
    sys.exit(main())
