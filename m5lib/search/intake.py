"""Products of your own on their way in: read, extracted, as streams for a model, and a report of
what was read and what was not."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from m5lib.catalogue import Catalogue, DataError
from m5lib.data import whole_file, write_json
from m5lib.files import reading
from m5lib.lab import checked, runs
from m5lib.modalities import MODALITIES
from m5lib.model import Model

#: What a cell of :attr:`Report.products` says of content that is there; one that was not given is
#: empty, else it is the reason.
READ = "read"
#: Why content was not read that a model has no use for.
UNREAD = "the model does not read it"


@checked
def load_model(folder: str | Path) -> Model:
    """A pre-trained model out of its folder, with what turns products into streams.

    Raises:
        FileNotFoundError, ValueError: as ``Model.from_pretrained``.
        DataError: it has no tokenizer.
    """
    if not Path(folder).is_dir():
        mend = "`model` is the folder of a run, or one written by save_pretrained"
        raise DataError(f"{folder}: no such folder; {mend}")
    model = Model.from_pretrained(folder).to(runs.best_device())
    if model.tokenizer is None:
        mend = "set model.tokenizer and save the model again"
        raise DataError(f"{folder}: no tokenizer lies beside the weights; {mend}")
    return model


def provenance(folder: Path, model: Model) -> dict:
    """How a model came to be that lies in a folder: what made its features, and the profile and
    seed of its run, ``None`` where nothing says so."""
    made, file = {}, folder / "job.json"
    if file.is_file():
        with reading(file, "delete it: it only says how the run was made"):
            made = dict(json.loads(file.read_text(encoding="utf-8"))["job"])
    settings = model.extractors.items()
    extractors = ",".join(f"{name}={how['extractor']}" for name, how in settings)
    return {name: made.get(name) for name in ("profile", "seed")} | {"extractors": extractors}


@dataclass(frozen=True)
class Report:
    """What was read of a catalogue and what was not, as tables; ``print`` it for a few lines. Best
    made after extraction (:mod:`m5lib.data.store`): broken files are found there. Words cannot be
    broken: an empty title counts as not given. Of a row that repeats an id nothing is used.

    Attributes:
        reads: the modalities that the model reads; empty: all.
        most: how many products the profile takes at most; 0: all.
    """

    catalogue: Catalogue
    reads: tuple[str, ...] = ()
    most: int = 0

    @cached_property
    def _skips(self) -> pd.DataFrame:
        """All that was left out; ``broken``: a file of a product, not a whole row."""
        skips = pd.DataFrame(self.catalogue.skipped, columns=["where", "what", "reason"])
        files = [name for name, row in MODALITIES.items() if row.kind == "features"]
        return skips.assign(broken=skips["what"].isin(files) & (skips["where"] != ""))

    @cached_property
    def products(self) -> pd.DataFrame:
        """A line per product, indexed by id: ``kept`` (it has something left), ``label``, and per
        modality :data:`READ`, nothing where nothing was given, or why it could not be read."""
        catalogue, broken = self.catalogue, self._skips[self._skips["broken"]]
        ids = pd.Index(dict.fromkeys([*catalogue.ids, *broken["where"]]), name="id", dtype=object)
        first = broken.drop_duplicates(["where", "what"])
        why = first.pivot(index="where", columns="what", values="reason")
        cells = catalogue.presence.map({True: READ, False: ""}.get).reindex(ids, fill_value="")
        cells = cells.where(cells == READ, why.reindex(index=ids, columns=cells.columns)).fillna("")
        unread = [name for name in cells if self.reads and name not in self.reads]
        cells[unread] = cells[unread].replace(READ, UNREAD)
        labels = pd.Series(catalogue.labels, catalogue.ids).reindex(ids).fillna("")
        cells.insert(0, "kept", ids.isin(catalogue.ids))
        cells.insert(1, "label", labels)
        return cells

    @cached_property
    def rows(self) -> pd.DataFrame:
        """What is no product: ``where`` (a line, an id, a tar member), ``what``, ``reason``."""
        skips = self._skips
        whole = ~skips["where"].isin(skips["where"][skips["broken"]])
        known = skips["where"].isin(self.catalogue.ids)
        rows = skips[~skips["what"].isin(list(MODALITIES)) & (known | whole)]
        return rows.drop(columns="broken").reset_index(drop=True)

    @cached_property
    def modalities(self) -> pd.DataFrame:
        """How many products have each modality ``read``, ``not given`` and ``not read``; ``inside``
        counts those read out of the file of another one (sound in video)."""
        cells = self.products[list(MODALITIES)]
        cells = cells.loc[:, (cells != "").any()]
        read, empty = cells == READ, cells == ""
        counts = {"read": read.sum(), "not given": empty.sum(), "not read": (~read & ~empty).sum()}
        contents = [product.contents for product in self.catalogue.products]
        outer = {name: MODALITIES[name].inside for name in cells}
        inside = [sum(o in c and c[o] == c.get(n) for c in contents) for n, o in outer.items()]
        return pd.DataFrame(counts).assign(inside=inside)

    @cached_property
    def reasons(self) -> pd.DataFrame:
        """Why files could not be read, the most frequent first: ``modality``, ``reason`` (without
        what it says in brackets), ``products``, some ``examples``."""
        cells = self.products[list(self.modalities.index)].reset_index()
        cells = cells.melt("id", var_name="modality", value_name="reason")
        cells = cells[~cells["reason"].isin([READ, ""])]
        cells["reason"] = cells["reason"].str.replace(r" \(.*\)", "", regex=True)
        groups = cells.groupby(["modality", "reason"], sort=False)["id"]
        counts = groups.agg(products="count", examples=_some).reset_index()
        return counts.sort_values("products", ascending=False, kind="stable", ignore_index=True)

    @cached_property
    def attributes(self) -> pd.Series:
        """Property -> how many products have it, the most frequent first."""
        contents = [c for p in self.catalogue.products for c in p.contents.values()]
        names = [name for c in contents if isinstance(c, tuple) for name in dict(c)]
        return pd.Series(names, dtype=object).value_counts().astype(int)

    def __str__(self) -> str:
        head, labels, *left_out = self.catalogue.report().splitlines()
        kept = len(self.catalogue)
        lost = f"{len(self.products) - kept:,} left out because nothing of them could be read"
        lines = [head, labels, f"  {kept:,} products kept; {lost}"]
        if 0 < self.most <= len(self.products):
            lines.append(f"  the profile takes {self.most:,} products: any others were left aside")
        for name, line in self.modalities.iterrows():
            counts = ", ".join(f"{line[how]:,} {how}" for how in ("read", "not given", "not read"))
            inside = f"; {line['inside']:,} of them in the {MODALITIES[name].inside}"
            lines.append(f"  {name}: {counts}{inside if line['inside'] else ''}")
        if len(self.attributes):
            lines.append(f"  attributes: {_some(self.attributes.index, 12)}")
        contents = [c for p in self.catalogue.products[:100] for c in p.contents.values()]
        pairs = [pair for c in contents if isinstance(c, tuple) for pair in c]
        if files := dict.fromkeys(name for name, value in pairs if re.search(MEDIA, value, re.I)):
            mend = "paths of files? call such columns image, video or audio"
            lines.append(f"  {_some(files)}: {mend}")
        return "\n".join([*lines, *left_out])

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``report.csv`` (products), ``rows.csv`` (what is no product) and ``report.json``
        (the counts); returns the paths."""
        folder = Path(folder)
        tables = {"report.csv": self.products.reset_index(), "rows.csv": self.rows}
        for name, table in tables.items():
            with whole_file(folder / name) as temporary:
                table.to_csv(temporary, index=False, encoding="utf-8")
        counts = {
            "products": len(self.catalogue),
            "left out": len(self.products) - len(self.catalogue),
            "at most": self.most or None,
            "rows": len(self.rows),
            "modalities": self.modalities.to_dict("index"),
            "reasons": self.reasons.to_dict("records"),
            "attributes": self.attributes.to_dict(),
        }
        return [*(folder / name for name in tables), write_json(folder / "report.json", counts)]


#: What a path of a picture, a video or a sound ends with.
MEDIA = r"\.(jpe?g|png|webp|gif|bmp|tiff?|mp4|mov|webm|mkv|avi|mp3|wav|flac|m4a|ogg)$"


def _some(names: Iterable, count: int = 3) -> str:
    names = list(map(str, names))
    return ", ".join(names[:count]) + (" …" if len(names) > count else "")
