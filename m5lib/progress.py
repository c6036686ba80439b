"""Progress for people: a bar in a terminal or a notebook, one line now and then where there is
neither."""

import os
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm.auto import tqdm


def bars() -> bool:
    """Whether someone sees a moving bar: in a terminal or an interactive notebook, not under
    papermill, in a pipe or in CI."""
    if os.environ.get("M5_PROGRESS"):
        return os.environ["M5_PROGRESS"] == "bar"
    return sys.stderr.isatty() or (
        "ipykernel.kernelapp" in sys.modules and "PAPERMILL_RUN" not in os.environ
    )


def progress(
    items: Iterable, total: int, label: str, unit: str = "", note=None, start: int = 0
) -> Iterator:
    """Pass the items on, showing how far it is and how long it will take.

    Args:
        note: called with nothing, gives a word on the state of the work (``loss 3.21``).
        start: how many were done before (a resumed run).
    """
    if bars():
        with tqdm(total=total, initial=start, desc=label, unit=f" {unit}", mininterval=0.5) as bar:
            for item in items:
                yield item
                bar.update()
                if note:
                    bar.set_postfix_str(note(), refresh=False)
        return
    begun = said = time.monotonic()
    tenth = max(1, total // 10)
    for number, item in enumerate(items, start=start + 1):
        yield item
        now = time.monotonic()
        if number == total or (number % tenth == 0 and now - said > 3):
            said, spent = now, now - begun
            left = spent / (number - start) * (total - number)
            filled = round(20 * number / total)
            words = f"{label} [{'#' * filled}{'.' * (20 - filled)}] {number:,}/{total:,} {unit}"
            print(
                f"{words}  {spent:.0f} s, {left:.0f} s left{'  ' + note() if note else ''}",
                flush=True,
            )
