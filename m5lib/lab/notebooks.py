"""Run notebooks with papermill, strictly: a parameter that the notebook does not have, or of
another type, is an error before the kernel starts (papermill only warns). From the shell::

    python -m m5lib notebooks --profile small --data FOLDER [notebook …]  # by default: every one
    python -m m5lib notebooks --demo [--data FOLDER]  # 01, 04 and 05, then the result table
"""

import argparse
import ast
import html
import json
import logging
import os
import re
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from string import Template
from urllib.parse import quote

import nbformat

from m5lib import ROOT, home
from m5lib.files import reading, whole_file


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


def results_of(notebook: Path) -> list[str]:
    """The results files that ``make results`` makes of a notebook, as its metadata name them;
    ``demo`` is what ``make demo`` runs."""
    return list(nbformat.read(notebook, as_version=4).metadata.get("m5lib", {}).get("results", []))


def parameters_of(notebook: str | Path) -> dict[str, object]:
    """Names and defaults in the cell tagged ``parameters``: literals, one assignment a line. Raises
    ``ParameterError``: there is no such cell, or it holds something else."""
    cells = nbformat.read(notebook, as_version=4).cells
    cells = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        tagged = f"{len(cells)} cells are tagged 'parameters'; exactly one must be"
        raise ParameterError(f"{notebook}: {tagged}")
    defaults = {}
    for statement in ast.parse(cells[0].source).body:
        try:  # `name = literal` or `name: type = literal`
            target = getattr(statement, "target", None) or statement.targets[0]
            defaults[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            line = f"line {statement.lineno} of the parameters cell is not `name = literal`"
            raise ParameterError(f"{notebook}: {line}") from None
    return defaults


def check(
    notebook: str | Path, given: Mapping[str, object], known: Mapping[str, object] | None = None
) -> dict[str, object]:
    """The given parameters, converted where nothing is lost (an ``int`` for a float or words).
    ``known`` are :func:`parameters_of` the notebook, where they were read before. Raises
    ``ParameterError``: an unknown name, a wrong type, a profile, model or modality that there is
    not; the message lists what there is."""
    known, checked, file = known or parameters_of(notebook), {}, Path(notebook).name
    for name, value in given.items():
        if name not in known:
            raise ParameterError(f"{file} has no parameter {name!r}; it has {', '.join(known)}")
        kind = type(known[name])
        if (type(value), kind) in ((int, float), (int, str)):  # 501 for words: papermill's -p
            value = kind(value)
        if type(value) is not kind:
            default = f"the default {known[name]!r} is {kind.__name__}"
            is_a = f"{name} = {value!r} is {type(value).__name__}"
            raise ParameterError(f"{file}: {is_a}, but {default}")
        if value != known[name]:
            _exists(file, name, value, known[name])
        checked[name] = value
    return checked


def _exists(file: str, name: str, value: object, default: object) -> None:
    """Raises ``ParameterError``, if the library has no such profile, row of the zoo or modality
    (and a parameter of that name is one): before a kernel starts, or a cluster's hundred."""
    if name not in ("profile", "model", "modalities") or not isinstance(value, str) or not value:
        return
    from m5lib.lab.runs import PROFILES, profile_of  # late: it takes seconds
    from m5lib.modalities import from_codes
    from m5lib.models.zoo import MODELS, build

    ours = {"profile": (PROFILES, profile_of), "model": (MODELS, build)}
    named, made = ours.get(name, ({""}, from_codes))
    if default in named:
        try:
            made(value)
        except ValueError as error:
            raise ParameterError(f"{file}: {error}") from None


def assignments(notebook: Path, words: Sequence[str], several: bool) -> dict:
    """``name=value`` as the notebook's default is: text, or JSON (or Python's True and False);
    ``several`` between commas."""
    known, parameters = parameters_of(notebook), {}
    for word in words:
        name, _, text = word.partition("=")
        if not text or name in parameters:
            raise ParameterError(f"{word!r}: write each parameter once, as name=value")
        values = text.split(",") if several else [text]
        if type(known.get(name, "")) is not str:
            with suppress(ValueError):  # said by `check`, with the parameter's name
                values = json.loads(re.sub("True|False", lambda x: x[0].lower(), f"[{text}]"))
        if not several and len(values) != 1:
            mend = "one value is needed here; several are for --grid, a number has a decimal point"
            raise ParameterError(f"{word!r}: {mend}")
        parameters[name] = values if several else values[0]
    return parameters


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
    """Ctrl-C for every notebook run by threads of this process: training is kept."""
    import asyncio

    # asyncio.run wants a thread without a loop; in Jupyter the main one has one
    with ThreadPoolExecutor(1) as pool:
        for manager in [m for m in list(_kernels) if m.has_kernel]:
            pool.submit(lambda m: asyncio.run(m.interrupt_kernel()), manager)


def run(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, object] | None = None,
    quiet: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Execute a notebook with the kernel of this Python, a process of its own, so that several
    threads may call this; the output file is written even when it fails. ``environment``:
    variables for the kernel, on top of those of this process.

    Raises:
        ParameterError: before anything starts.
        NotebookError: a cell raised, or the kernel was killed.
        KeyboardInterrupt: the kernel was interrupted.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    checked, output, name = check(notebook, parameters or {}), Path(output), Path(notebook).name
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
            start_timeout=600,  # seconds: a busy machine
            extra_arguments=["--log-level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt(f"{name}: {error.evalue or 'interrupted'}") from None
        raise NotebookError(name, error.exec_count, error.ename, error.evalue, output) from None
    except DeadKernelError as error:
        says = f"{error} (killed: out of memory?)"
        raise NotebookError(name, "?", "DeadKernelError", says, output) from None
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
    with whole_file(notebook.with_suffix(".html")) as path:
        path.write_text(page, encoding="utf-8")
    return notebook.with_suffix(".html")


def outcome(notebook: Path) -> dict:
    """What an executed notebook says of itself: ``title``, ``question``, ``parameters``,
    ``seconds`` (None: not said), the first ``error`` and the first ``picture``, a PNG in base64,
    each empty where there is none."""
    book = nbformat.read(notebook, as_version=4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    title = re.search(r"^# (.+)$", text, re.M)
    question = re.search(r"\*\*Question\.\*\*\s*(.+?)(?:\n\n|$)", text, re.S)
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    errors = (o for o in outputs if o.output_type == "error")
    errors = (f"{o.ename}: {o.evalue.strip().partition(chr(10))[0]}" for o in errors)
    pictures = (o.get("data", {}).get("image/png", "") for o in outputs)
    about = book.metadata.get("papermill", {})
    return {
        "title": title[1] if title else notebook.stem,
        "question": question[1].replace("\n", " ") if question else "",
        "parameters": dict(about.get("parameters", {})),
        "seconds": about.get("duration"),
        "error": next(errors, ""),
        "picture": next(filter(None, pictures), ""),
    }


def _page(template: str, **parts: str) -> str:
    """One of the templates beside this file, filled."""
    text = Path(__file__).with_name(template).read_text(encoding="utf-8")
    return Template(text.rstrip()).substitute(parts)


def _card(notebook: Path) -> str:
    about, page = outcome(notebook), quote(notebook.with_suffix(".html").name)
    state = f"failed: {about['error']}" if about["error"] else "finished"
    state += "" if about["seconds"] is None else f" · {about['seconds']:.0f} s"
    given = " ".join(f"{name}={x}" for name, x in about["parameters"].items() if x != "")
    texts = {"title": about["title"], "question": about["question"], "state": state}
    texts = {name: html.escape(text) for name, text in (texts | {"parameters": given}).items()}
    shot = ""
    if about["picture"]:
        picture = f"data:image/png;base64,{about['picture']}"
        shot = f'<a class="shot" href="{page}"><img src="{picture}" alt="first figure"></a>'
    return _page("card.html", **texts, page=page, file=quote(notebook.name), shot=shot)


def write_index(folder: Path, table: str = "", figures: Sequence[Path] = ()) -> Path:
    """``index.html``: a card with a link for each executed notebook of the folder, a result table,
    figures. Needs no server and no network: addresses are relative, thumbnails inside."""
    cards, results = [], f'<h1>Results</h1><div class="wide">{table}</div>' if table else ""
    for notebook in sorted(folder.glob("*.ipynb")):
        page = notebook.with_suffix(".html")
        try:
            with reading(notebook, "delete it, or run it again"):
                if not page.exists() or page.stat().st_mtime < notebook.stat().st_mtime:
                    to_html(notebook)
                cards.append(_card(notebook))
        except ValueError as error:
            print(f"left out of index.html: {error}")
    for figure in figures:
        address = quote(os.path.relpath(figure, folder).replace(os.sep, "/"))
        name = html.escape(figure.stem)
        results += f'<figure><img loading="lazy" src="{address}" alt="{name}">{name}</figure>'
    with whole_file(folder / "index.html") as path:
        path.write_text(_page("index.html", cards="".join(cards), results=results), "utf-8")
    return folder / "index.html"


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m m5lib notebooks``. Returns 1: a notebook failed (the others still ran), 2: wrong
    use, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m m5lib notebooks", description="Run notebooks into reports/."
    )
    option = parser.add_argument
    option("notebook", nargs="*", type=Path, help="notebooks; by default all")
    option("--demo", action="store_true", help="only the main story, then print its results")
    option("--profile", default="small", help="tiny, quick, small or full")
    option("--record", default="demo", help="name in results/ of what the demo finds")
    option("--data", default="", help="folder or file of products; by default each notebook's own")
    option("--extractors", default="", help="such as image=regions:weights.pt; by default plain")
    option("--bert", default="", help="a BERT that titles start from; by default random weights")
    option("--set", nargs="+", default=[], metavar="NAME=A", help="other parameters of them")
    options = parser.parse_args(arguments)
    for path in options.notebook:
        if not path.is_file():
            names = ", ".join(known.stem for known in find())
            parser.error(f"no notebook {path}; in notebooks/ are {names}")
    options.data = "" if options.data == "shop" else options.data
    if options.data and not Path(options.data).exists():
        parser.error(f"--data {options.data}: no such file or folder")
    try:
        return _run_all(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{error or 'stopped'}; the same call goes on from there", file=sys.stderr)
        return 130


def _run_all(options: argparse.Namespace) -> int:
    """What the command line asks for, one notebook after another, and their page."""
    from m5lib.data import locked
    from m5lib.data.backbones import absolute, choose
    from m5lib.lab import recording, runs
    from m5lib.models.pretrained import read_bert

    begun, failed = time.monotonic(), {}
    runs.profile_of(options.profile)
    show_progress()
    started = time.time() - 2  # file systems that count in seconds
    todo = options.notebook or [n for n in find() if not options.demo or "demo" in results_of(n)]
    reports, shared = home("reports"), {"profile": options.profile}
    shared |= {"data": str(Path(options.data).resolve())} if options.data else {}
    shared |= {"record": options.record} if options.demo else {}
    if options.extractors:
        choose(options.extractors)  # a mistyped one costs no run
        shared["extractors"] = absolute(options.extractors)
    if options.bert:
        read_bert(options.bert)
        shared["bert"] = absolute(f":{options.bert}")[1:]
    if options.demo and options.data and not options.extractors:
        todo = _measurable(todo, shared["data"])
    given = {}
    for notebook in todo:
        own = {name: x for name, x in shared.items() if name in parameters_of(notebook)}
        given[notebook] = own | assignments(notebook, options.set, several=False)
        check(notebook, given[notebook])
    with locked(reports / ".lock"):  # a second call waits: notebooks are written in place
        for notebook in todo:
            print(f"\n=== {notebook.name} ===", flush=True)
            try:
                run(notebook, reports / notebook.name, given[notebook])
            except NotebookError as error:
                failed[notebook] = str(error)
        results, table, figures = recording.results_folder() / f"{options.record}.json", "", []
        if options.demo and results.exists():
            ran = [notebook.stem for notebook in todo if notebook not in failed]
            if not options.notebook:  # nothing of an earlier demo stays, or is shown
                recording.keep_only(results, ran)
            headline = recording.headline(results)
            print("\n" + headline.to_string() if len(headline) else "")
            table = headline.to_html(border=0) if len(headline) else ""
            pictures = results.parent.glob(f"{options.record}_*.png")
            figures = sorted(
                (path for path in pictures if path.stat().st_mtime >= started),
                key=lambda path: (not path.stem.endswith("_front"), path.name),
            )
        page = write_index(reports, table, figures)
    for error in failed.values():
        print(f"FAILED {error}", file=sys.stderr)
    done, seconds = len(todo) - len(failed), time.monotonic() - begun
    print(f"{done} of {len(todo)} notebooks in {seconds:.0f} s; open {page}")
    return int(bool(failed))


def _measurable(todo: list[Path], data: str) -> list[Path]:
    """The notebooks, without those that measure by category where these products have none. Raises
    ``DataError``: there are no products."""
    from m5lib.catalogue import DataError
    from m5lib.data import readers
    from m5lib.evaluation.evaluate import require_labels

    catalogue = readers.read(data)
    try:
        require_labels(catalogue)
    except DataError as error:
        print(f"left out is what measures by category: {error}")
        return [n for n in todo if '"evaluate.require_labels(' not in n.read_text("utf-8")]
    return todo
