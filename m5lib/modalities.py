"""The table of modalities: five rows. Nothing else in the library asks for a modality by its name.

Everything that is per modality travels in dicts keyed by ``name``, in the order of this table. To
add a modality, add a row here and an extractor to :mod:`m5lib.data.extractors` (or, for words, the
``units`` function of the row): see ``CONTRIBUTING.md``.

>>> MODALITIES["table"].task, MODALITIES["table"].hides  # ("MEM", "entity")
>>> codes(["text", "image"]), from_codes("I+T")  # "I+T", ("image", "text")
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Modality:
    """One row of the table.

    Attributes:
        name: key in every dict, and name of the column in a table of your own products.
        code: the paper's abbreviation (Table 4), used in result rows: ``I+T+Tab+V+A``.
        kind: ``words`` (a token is a word piece) or ``features`` (a token is a vector).
        max_tokens: the paper's limit (sections 4.1 and 5; supplement E), the summary token of a
            feature stream not counted.
        task: the masked task (section 4.2), and what it hides at a time: a ``token``, or an
            ``entity``, which is a whole property or a whole value of a table. Words are predicted
            by cross-entropy, features by regression.
        position: what tells tokens apart: their ``index``, or the 5-d ``box`` of a region.
        units: for words, the strings that make up the content, one per entity; unused for features.
        missing: what "absent" looks like in the data.
        inside: the modality whose files may hold this one too, as a video holds its sound.
    """

    name: str
    code: str
    kind: Literal["words", "features"]
    max_tokens: int
    task: str
    hides: Literal["token", "entity"] = "token"
    position: Literal["index", "box"] = "index"
    units: Callable[[Any], list[str]] | None = None
    missing: str = ""
    inside: str | None = None

    @property
    def slots(self) -> int:
        """The longest stream, its summary token included (that of words is in ``max_tokens``)."""
        return self.max_tokens + (self.kind == "features")


def _pairs(table: tuple[tuple[str, str], ...]) -> list[str]:
    """Properties and values in turn, without separators (released loader, pre-training)."""
    return [text for pair in table for text in pair]


UNREADABLE = "no file, or one that cannot be decoded"
SILENT = "no file, and no sound in the video"
_ROWS = (
    Modality("image", "I", "features", 36, "MRP", position="box", missing=UNREADABLE),
    Modality("text", "T", "words", 36, "MLM", units=lambda t: [t], missing="an empty title"),
    Modality("table", "Tab", "words", 64, "MEM", "entity", units=_pairs, missing="no filled cell"),
    Modality("video", "V", "features", 12, "MFP", missing=UNREADABLE),
    Modality("audio", "A", "features", 80, "MAM", missing=SILENT, inside="video"),
)
MODALITIES: dict[str, Modality] = {row.name: row for row in _ROWS}


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """The given modality names in the table's order, once each. Raises ``ValueError``: unknown."""
    given = set(names)
    if unknown := given - set(MODALITIES):
        raise ValueError(f"unknown modality {sorted(unknown)}: known are {list(MODALITIES)}")
    return tuple(name for name in MODALITIES if name in given)


def codes(names: Iterable[str]) -> str:
    """``("text", "image") -> "I+T"``: how result rows write a set of modalities."""
    return "+".join(MODALITIES[name].code for name in ordered(names))


def from_codes(text: str) -> tuple[str, ...]:
    """``"I+T" -> ("image", "text")``, inverse of :func:`codes`. Raises ``ValueError``: unknown."""
    by_code = {row.code: row.name for row in MODALITIES.values()}
    if unknown := [code for code in text.split("+") if code not in by_code]:
        raise ValueError(f"unknown modality code {unknown} in {text!r}: known are {list(by_code)}")
    return ordered(by_code[code] for code in text.split("+"))
