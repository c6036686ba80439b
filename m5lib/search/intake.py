"""Products of your own on their way in: read, extracted, as streams for a model, and a report of
what was read and what was not."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from m5lib import home
from m5lib.catalogue import Catalogue, DataError, Product, Rows
from m5lib.data import readers, store
from m5lib.data.files import write_json
from m5lib.data.media import Ragged
from m5lib.lab import runs
from m5lib.modalities import MODALITIES, codes
from m5lib.model import Model
from m5lib.shop import listings
from m5lib.streams import Batch, Stream, Streams

#: What a cell of :attr:`Report.products` says of content that is there; one that was not given is
#: empty, else it is the reason.
READ = "read"


def load(
    data: str | Path, size: runs.Profile, seed: int, extractors: Mapping
) -> tuple[Catalogue, dict[str, Ragged]]:
    """:func:`m5lib.lab.runs.load` with extractors of one's own. Of products that a profile leaves
    aside nothing stands in ``skipped``.

    Raises:
        DataError: nothing readable lies there.
    """
    whole = listings.make(size=size.name, seed=seed) if data == "shop" else readers.read(data)
    catalogue = whole if data == "shop" else runs.thin(whole, size.products)
    others = set(whole.ids) - set(catalogue.ids)
    catalogue = replace(
        catalogue, skipped=tuple(skip for skip in catalogue.skipped if skip.where not in others)
    )
    return store.extract(
        catalogue, extractors, home("cache", f"{catalogue.name}-{catalogue.fingerprint}")
    )


def load_model(folder: str | Path) -> Model:
    """A pre-trained model out of its folder, with what turns products into streams.

    Raises:
        FileNotFoundError, ValueError: as ``Model.from_pretrained``.
        DataError: it has no tokenizer, or an extractor that cannot be made again.
    """
    if not Path(folder).is_dir():
        raise DataError(
            f"{folder}: no such folder; `model` is the folder of a run, or one written by "
            "save_pretrained"
        )
    model = Model.from_pretrained(folder).to(runs.best_device())
    if model.tokenizer is None:
        raise DataError(
            f"{folder}: no tokenizer lies beside the weights; set model.tokenizer and save the "
            "model again"
        )
    if bare := [n for n, e in extractors_of(model).items() if isinstance(e, dict)]:
        raise DataError(
            f"{folder}: the extractor of {bare} has weights of its own, or is not the library's; "
            "extract with m5lib.data.store"
        )
    return model


def extractors_of(model: Model) -> dict:
    """The extractors that the model was trained with, made again from their settings.

    Raises:
        ValueError: as :func:`m5lib.data.store.extractor_of`.
    """
    kept = [name for name in model.extractors if name in model.spec.modalities]
    return {name: store.extractor_of(model.extractors[name]) for name in kept}


class Fitted(Streams):
    """Streams for a model that may be built for more modalities than the products have: those are
    absent from every batch.

    Raises :class:`~m5lib.catalogue.DataError` where the products have none of the model's
    modalities.
    """

    def __init__(self, catalogue: Catalogue, features: Mapping[str, Ragged], model: Model):
        here = [
            n
            for n in model.spec.modalities
            if n in catalogue.modalities and (MODALITIES[n].kind == "words" or n in features)
        ]
        if not here:
            raise DataError(
                f"{catalogue.name} has {codes(catalogue.modalities)}; the model reads "
                f"{codes(model.spec.modalities)}"
            )
        super().__init__(catalogue, features, model.tokenizer, here)
        self.spec = model.spec

    def batch(self, rows: Rows) -> Batch:
        """The batch of the given rows, with a stream for each modality of the model."""
        batch = super().batch(rows)
        streams = {
            n: batch.streams[n] if n in batch.streams else self._absent(n, len(batch.rows))
            for n in self.spec.modalities
        }
        return replace(batch, streams=streams)

    def _absent(self, name: str, count: int) -> Stream:
        nothing, row = torch.zeros(count, 1, dtype=torch.long), MODALITIES[name]
        if row.kind == "words":
            return Stream(nothing, nothing.bool(), entity=nothing - 1)
        boxes = torch.zeros(count, 1, 5) if row.position == "box" else None
        return Stream(
            torch.zeros(count, 1, dict(self.spec.widths)[name]), nothing.bool(), boxes=boxes
        )


# --- what was read
# ------------------------------------------------------------------------------------------------


class Report(NamedTuple):
    """What was read of a catalogue, as tables; ``print`` it for a few lines.

    Attributes:
        products: a line per product, indexed by id: ``kept`` (it has something left), ``label``,
            and a column per modality that says :data:`READ`, nothing where nothing was given, or
            why it could not be read.
        rows: what is no product: ``where`` (a line, an id, a tar member), ``what``, ``reason``.
        modalities: for each modality how many products have it ``read``, of these how many out of
            the file of another one (``inside``: sound in video), ``not given``, and ``not read``.
        reasons: each reason: ``modality``, ``reason``, ``products``, some ``examples``. What a
            reason says in brackets is left out.
        attributes: property -> how many products have it, the most frequent first.
    """

    products: pd.DataFrame
    rows: pd.DataFrame
    modalities: pd.DataFrame
    reasons: pd.DataFrame
    attributes: pd.Series

    def __str__(self) -> str:
        kept = int(self.products["kept"].sum())
        lines = [
            f"{kept:,} products kept; {len(self.products) - kept:,} left out, of which nothing "
            "could be read"
        ]
        for name, line in self.modalities.iterrows():
            counts = f"{line['read']:,} read, {line['not given']:,} not given, {line['not read']:,} not read"  # noqa: E501
            inside = (
                f"; {line['inside']:,} of them in the {MODALITIES[name].inside}"
                if line["inside"]
                else ""
            )
            lines.append(f"  {name}: {counts}{inside}")
        lines += [
            f"  not read: {r.modality}: {r.reason}: {r.products:,} ({r.examples})"
            for r in self.reasons.itertuples()
        ]
        for (what, reason), part in self.rows.groupby(["what", "reason"], sort=False):
            lines.append(
                f"  not a product: {what}: {reason}: {len(part):,} ({_some(part['where'])})"
            )
        return "\n".join(lines)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.csv`` (products), ``rows.csv`` (what is no product) and ``report.json``
        (the counts); returns the paths."""
        folder, paths = Path(folder), []
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in (("report", self.products.reset_index()), ("rows", self.rows)):
            paths.append(folder / f"{name}.csv")
            frame.to_csv(temporary := folder / f"{name}.csv.tmp", index=False, encoding="utf-8")
            os.replace(temporary, paths[-1])
        counts = {
            "products": int(self.products["kept"].sum()),
            "left out": int((~self.products["kept"]).sum()),
            "rows": len(self.rows),
        }
        counts |= {
            "modalities": self.modalities.to_dict("index"),
            "reasons": self.reasons.to_dict("records"),
        }
        return [
            *paths,
            write_json(folder / "report.json", counts | {"attributes": self.attributes.to_dict()}),
        ]


def report(catalogue: Catalogue) -> Report:
    """The report of a catalogue, best after extraction (:mod:`m5lib.data.media`,
    :mod:`m5lib.data.store`): broken files are found there.

    Words cannot be broken: an empty title counts as not given. Of a row that repeats an id nothing
    is used.
    """
    why: dict[str, dict[str, str]] = {}
    for skip in catalogue.skipped:
        row = MODALITIES.get(skip.field)
        if row and row.kind == "features" and skip.where:  # a row without id has its line in `rows`
            why.setdefault(skip.where, {}).setdefault(skip.field, skip.reason)
    kept = dict(zip(catalogue.ids, catalogue.products, strict=True))
    products = pd.DataFrame(
        [_line(i, kept.get(i), why.get(i, {})) for i in dict.fromkeys((*kept, *why))],
        columns=["id", "kept", "label", *MODALITIES],
    ).set_index("id")
    rows = [
        s
        for s in catalogue.skipped
        if s.field not in MODALITIES and (s.where in kept or s.where not in why)
    ]
    here = products[[name for name in MODALITIES if (products[name] != "").any()]]
    read, empty = here == READ, here == ""
    modalities = pd.DataFrame(
        {"read": read.sum(), "not given": empty.sum(), "not read": (~read & ~empty).sum()}
    )
    modalities["inside"] = [_inside(catalogue, name) for name in modalities.index]
    return Report(
        products,
        pd.DataFrame(rows, columns=["where", "what", "reason"]),
        modalities,
        _reasons(here),
        _attributes(catalogue),
    )


def _line(i: str, product: Product | None, why: Mapping[str, str]) -> list:
    has = product.contents if product else {}
    return [
        i,
        product is not None,
        product.label or "" if product else "",
        *(READ if n in has else why.get(n, "") for n in MODALITIES),
    ]


def _inside(catalogue: Catalogue, name: str) -> int:
    """How many products have this modality out of the file of the one that it may lie in."""
    other = MODALITIES[name].inside
    return sum(
        other in p.contents and p.contents[other] == p.contents.get(name)
        for p in catalogue.products
    )


def _reasons(cells: pd.DataFrame) -> pd.DataFrame:
    found = []
    for name in cells:
        said = cells[name][~cells[name].isin([READ, ""])].map(
            lambda reason: re.sub(r" \(.*\)", "", reason)
        )
        found += [
            (name, reason, int(count), _some(said.index[said == reason]))
            for reason, count in said.value_counts().items()
        ]
    return pd.DataFrame(found, columns=["modality", "reason", "products", "examples"])


def _some(ids, count: int = 3) -> str:
    return ", ".join(map(str, list(ids)[:count])) + (" …" if len(ids) > count else "")


def _attributes(catalogue: Catalogue) -> pd.Series:
    names = [
        n
        for p in catalogue.products
        for content in p.contents.values()
        if isinstance(content, tuple)
        for n in dict(content)
    ]
    return pd.Series(names, dtype=object).value_counts().astype(int)
