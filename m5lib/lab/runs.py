"""Profiles, and what a run is: trained, resumed or only loaded.

A run is a function of its settings: its folder's name holds a hash of the settings, the data's
fingerprint and the library's source. A finished run is not run again, an interrupted one resumes.
"""

import copy
import inspect
import json
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from m5lib import home, simcl
from m5lib.catalogue import Catalogue, DataError, Rows
from m5lib.data import columns, locked, m5features, readers, store, write_json
from m5lib.data.backbones import agreed, choose
from m5lib.data.extractors import PLAIN, Pixels
from m5lib.embeddings import READOUTS, embeddings
from m5lib.evaluation.evaluate import fit_readouts, spread
from m5lib.evaluation.separation import glance
from m5lib.files import reading, whole_file
from m5lib.lab import checked, code_version, digest
from m5lib.modalities import MODALITIES, codes, from_codes, ordered
from m5lib.model import Model
from m5lib.models.finetune import Classifier, classify, finetune, labels_of
from m5lib.models.parallel import Parts, ahead, launch, led, meet
from m5lib.models.pretrained import check_words, load_bert, read_bert, starting
from m5lib.models.words import train_tokenizer
from m5lib.models.zoo import build, change
from m5lib.pretrain import Training, logged, pretrain, world
from m5lib.shop import listings
from m5lib.spec import Spec, check_choices
from m5lib.streams import Ragged, Streams, computed, load_tokenizer


@dataclass(frozen=True)
class Profile:
    """One size of everything: ``tiny`` (CI: seconds, shows mechanisms), ``quick`` (a first answer),
    ``small`` (two cores: minutes), ``full`` (the paper's, CUDA)."""

    name: str
    width: int
    layers: int
    heads: int
    training: Training
    tuning: Training  # of fine-tuning
    vocabulary: int
    products: int = 0  # at most so many are read, evenly over the splits; 0: all
    asked: int = 0  # the shop has so many listings more, for evaluation only
    #: Of catalogues of fewer than so many training products: smaller, in larger steps (LOG.md).
    few: tuple[int, "Profile"] | None = None

    def for_products(self, count: int) -> "Profile":
        """The profile for so many training products."""
        return self.few[1] if self.few and count < self.few[0] else self


_SHORT, _PAPER = Training(4, 32, 3e-3), Training(5, 64, 1e-4)
_FEW = Training(batch_size=32, learning_rate=2e-3, steps=1500)
FEW = Profile("small", 128, 1, 4, _FEW, Training(6, 32, 1e-3), vocabulary=8000)
_SMALL = Training(5, 128, 1e-3), Training(3, 64, 1e-3)
PROFILES = {
    "tiny": Profile("tiny", 32, 1, 2, _SHORT, _SHORT, vocabulary=800, products=400),
    "quick": replace(FEW, name="quick", training=replace(_FEW, steps=120), products=1000),
    "small": Profile("small", 256, 1, 4, *_SMALL, vocabulary=8000, few=(4000, FEW)),
    "full": Profile("full", 768, 6, 12, _PAPER, _PAPER, vocabulary=21128),
}


@checked
def profile_of(name: str) -> Profile:
    """The profile of a name. Raises ``ValueError`` for an unknown one."""
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: known are {list(PROFILES)}")
    return PROFILES[name]


def best_device() -> torch.device:
    """CUDA where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@checked
def thin(catalogue: Catalogue, products: int) -> Catalogue:
    """At most so many products, the same share of each split, in their order; 0 keeps all."""
    if not 0 < products < len(catalogue):
        return catalogue
    step = len(catalogue) / products
    order = np.argsort(catalogue.splits.astype(str), kind="stable").tolist()
    return catalogue.take(sorted(order[int(n * step)] for n in range(products)))


@checked
def load(
    data: str | Path, profile: Profile, seed: int = 0, extractors: str | Mapping = ""
) -> tuple[Catalogue, dict[str, Ragged]]:
    """Read, thin and extract: the catalogue without broken media, and its features. Of products
    that the profile leaves aside nothing stands in ``skipped``.

    Args:
        data: ``shop``, the synthetic one of the profile's size, or a path
            (:func:`m5lib.data.readers.read`), or a folder that :func:`m5lib.data.columns.keep`
            wrote, with its features as they are.
        extractors: as :func:`m5lib.data.backbones.choose`; empty: the plain ones.

    Raises ``DataError``: nothing readable lies there, an unknown extractor, the shop's features.
    """
    if (Path(data) / columns.FILE).is_file():
        whole, features = columns.opened(data)
        if len(catalogue := thin(whole, profile.products)) == len(whole):
            return whole, features
        return catalogue, columns.some(features, np.flatnonzero(np.isin(whole.ids, catalogue.ids)))
    chosen = choose(extractors)
    stored = any(not getattr(extractor, "decodes", True) for extractor in chosen.values())
    if data == "shop" and stored:
        raise DataError("the shop has media and no stored features: leave out 'official'")
    if data == "shop":
        catalogue = listings.make(size=profile.name, seed=seed, asked=profile.asked)
    else:
        bare = stored and Path(data).is_dir() and not readers.annotated(Path(data))
        whole = m5features.listed(data, chosen) if bare else readers.read(data)
        catalogue = thin(whole, profile.products)
        others = set(whole.ids) - set(catalogue.ids)
        skipped = tuple(skip for skip in catalogue.skipped if skip.where not in others)
        name = "products" if catalogue.name.partition(" (")[0] == "shop" else catalogue.name
        catalogue = replace(catalogue, skipped=skipped, name=name)  # shop.csv is not the shop
    cache = home("cache", f"{catalogue.name}-{catalogue.fingerprint}")
    if stored:
        return m5features.read_features(data, catalogue, cache, chosen)
    return store.extract(catalogue, chosen, cache)


def pixels(catalogue: Catalogue) -> dict[str, Ragged]:
    """The pictures' pixels: what a control without learning sees."""
    where = home("cache", f"{catalogue.name}-{catalogue.fingerprint}-pixels")
    return store.extract(catalogue, {next(iter(MODALITIES)): Pixels()}, where)[1]


def streams_of(
    catalogue: Catalogue,
    features: Mapping[str, Ragged],
    profile: Profile,
    modalities: str = "",
    tokenizer: str = "",
    model: str = "",
) -> Streams:
    """Streams of modality codes (empty: what a row of the zoo reads of the catalogue; without one,
    all) and a tokenizer (empty: trained on the catalogue). Warns of features that a stream cuts."""
    for name, made in features.items():
        most = MODALITIES[name].max_tokens
        if cut := int((np.diff(made.offsets) > most).sum()):
            what = f"{name}: of {cut:,} products only the first {most} tokens are read"
            warnings.warn(f"{what}; choose settings of its extractor that make fewer", stacklevel=2)
    names = from_codes(modalities) if modalities else None
    if model and not modalities:
        names = [n for n in catalogue.modalities if n in build(model).takes] or None
    trained = None if tokenizer else train_tokenizer(catalogue, profile.vocabulary)
    return Streams(catalogue, features, trained or load_tokenizer(tokenizer), names)


@dataclass(frozen=True)
class Job:
    """One pre-training run: everything it depends on besides the data and the code.

    ``products`` says which of the training products pre-train: ``all``; those that are
    ``complete``, with every modality of the model (Table 10); or ``none``: fine-tuning then starts
    from random weights. ``bert`` settles width and heads, and the streams must have its tokenizer
    (:func:`m5lib.models.pretrained.starting`). ``devices`` share batches: the same run.

    Raises ``ValueError``: a field of another kind, below 0 or without end, no device, or no pairs.
    """

    profile: str = "tiny"
    model: str = "scale"
    seed: int = 0
    epochs: int | float = 0
    learning_rate: float = 0.0  # the highest of pre-training; 0: the profile's
    tokenizer: str = ""
    extractors: str = ""  # those of `load`; empty: whatever made the streams
    bert: str = ""  # name or folder of a BERT that titles start from
    bert_rate: float = 1e-4  # at which its last layer learns; 0: frozen
    bert_decay: float = 1.0  # times this per layer down
    bert_layers: int = 0  # of it; 0: all, in the profile `full` as many as the row says (6)
    settings: tuple[tuple[str, Any], ...] = ()  # of the row, such as (("text_table", "one"),)
    changes: tuple[tuple[str, Any], ...] = ()  # of `zoo.change`, as (("missing", "impute"),)
    products: Literal["all", "complete", "none"] = "all"
    devices: int = 1
    micro: int = 0  # products that a device takes at a time; 0: all it has of a batch
    loaders: int = 0  # processes for each device that make its batches ahead; 0: it does

    def __post_init__(self):
        check_choices(self)
        for name, value in vars(self).items():
            least, kind = int(name == "devices"), type(getattr(Job, name))
            if isinstance(value, int | float) and not least <= value < 2**63:
                raise ValueError(f"{name} {value}: give a number from {least} on")
            if {kind, type(value)} <= {int, float} and value == kind(value):  # 0.0 epochs are 0
                object.__setattr__(self, name, kind(value))
        with reading("settings or changes", 'give pairs, such as (("width", 64),)'):
            dict(self.settings), dict(self.changes)

    def plan(self, streams: Streams) -> "Plan":
        """All that follows from the job for these streams. Raises ``ValueError``: an unknown model,
        field or value; the message lists the known ones."""
        train = streams.catalogue.split("train")
        size = profile_of(self.profile).for_products(len(train))
        rate = self.learning_rate or size.training.learning_rate
        training = replace(size.training, seed=self.seed, learning_rate=rate)
        if self.epochs:
            training = replace(training, epochs=self.epochs, steps=None)
        rows = train[:0] if self.products == "none" else train
        if self.products == "complete":  # as many steps as on all
            training = replace(training, steps=training.total_steps(len(train)))
            presence = streams.catalogue.presence[list(streams.modalities)].to_numpy()
            rows = rows[presence[rows].all(axis=1)]
        own = {name: getattr(size, name) for name in ("width", "layers", "heads")}
        if bert := read_bert(self.bert) if self.bert else None:
            check_words(bert, streams.tokenizer)
            own |= {"width": bert.width, "heads": bert.block.heads}
        row = build(self.model, **own | dict(self.settings))
        spec, made = change(row, self.changes).fit(streams), streams.settings
        if bert:
            deep = self.bert_layers or (None if self.profile == "full" else bert.layers)
            spec = starting(spec, bert, deep, self.bert_rate, self.bert_decay)
        settled = {
            # extractors and bert by what they compute, not by where they lie
            "job": asdict(replace(self, devices=1, micro=0, loaders=0, extractors=""))
            | {"bert": bert and bert.version},
            "extractors": [computed(made[name]) for name in spec.modalities if name in made],
            "training": asdict(training),
            "spec": spec.to_dict(),
            "data": streams.catalogue.fingerprint,
            "code": code_version(),
        }
        form = simcl.FORMS.get(spec.objective.contrast)
        if form and not form.__module__.startswith("m5lib."):  # a notebook's own: by its lines
            settled["form"] = inspect.getsource(form)
        folder = home("runs", f"{self.model}-{codes(spec.modalities)}-{digest(settled)}")
        return Plan(spec, training, replace(size.tuning, seed=self.seed), rows, folder)


@dataclass(frozen=True)
class Plan:
    """What follows from a job and its streams."""

    spec: Spec  # the model's row at the profile's size, with the changes
    training: Training  # the profile's settings with the job's seed, epochs and rate
    tuning: Training
    rows: np.ndarray  # the products to pre-train on
    folder: Path  # runs/<model>-<codes>-<hash> of this job on this data with this code


def data_name(catalogue: Catalogue, settings: Mapping[str, Mapping], bert: str = "") -> str:
    """What result rows call the data: its name, extractors that are not the plain ones, titles'
    BERT, with the first digits of their weights' checksum."""
    plain = {name: store.settings(extractor) for name, extractor in PLAIN.items()}
    others = [
        f"{name}={made['extractor']}" + f":{made.get('weights') or ''}"[:9].rstrip(":")
        for name in ordered(settings)
        if "extractor" in (made := settings[name]) and computed(made) != plain.get(name)
    ]
    others += [f"text=bert:{read_bert(bert).version[:8]}"] if bert else []
    return f"{catalogue.name} ({', '.join(others)})" if others else catalogue.name


@dataclass(frozen=True)
class Run:
    """A pre-trained model with the folder it lies in and its history."""

    model: Model
    folder: Path
    history: list[dict]

    @property
    def name(self) -> str:
        """What result rows call it."""
        return self.folder.name

    def context(self, notebook: str, job: Job, catalogue: Catalogue, features=None) -> dict:
        """The columns that all result rows of a notebook share (:func:`data_name`). A table gives
        all ``features`` that its rows choose from, so that each names the products alike."""
        made = {name: own.settings or {} for name, own in (features or {}).items()}
        data = data_name(catalogue, made or self.model.extractors, job.bert)
        shared = {"notebook": notebook, "run": self.name, "data": data, "profile": job.profile}
        reads = codes(self.model.spec.modalities)
        return shared | {"seed": job.seed, "model": job.model, "modalities": reads}


def vectors(
    model: Model,
    streams: Streams,
    wanted: Rows,
    modalities: Iterable[str] | None = None,
    readouts: Iterable[str] = READOUTS,
) -> dict[str, np.ndarray]:
    """Embeddings of the wanted rows by every read-out: (N, D) of all products, the others NaN."""
    parts = embeddings(model, streams, wanted, modalities, readouts)
    return {n: spread(part, wanted, len(streams), np.nan) for n, part in parts.items()}


def untrained(job: Job, streams: Streams) -> Model:
    """The model as :func:`pretrained` starts it: the control of every claim about pre-training."""
    fit_readouts(model := _started(job, streams), streams)
    return model.eval()


def _started(job: Job, streams: Streams) -> Model:
    """The same, its read-outs not fitted."""
    if job.extractors:
        agreed(streams.settings, job.extractors)
    torch.manual_seed(job.seed)
    model = Model(job.plan(streams).spec).to(best_device())
    if job.bert:
        load_bert(model, read_bert(job.bert))
    model.tokenizer = streams.tokenizer
    made = streams.settings
    model.extractors = {name: made[name] for name in model.spec.modalities if name in made}
    return model.eval()


def pretrained(job: Job, streams: Streams) -> Run:
    """Pre-train, resume, or only load: whatever is left to do. The folder then holds config,
    history and ``model.safetensors``. Of two processes the second waits, then loads; those of
    torchrun train together, and ``job.devices`` are started here."""
    plan, (_, together) = job.plan(streams), world()
    with led(locked(plan.folder / ".lock")):
        if not (plan.folder / "model.safetensors").exists():
            if together == 1 < job.devices:
                launch(_train, job.devices, job, streams)
            else:
                _train(job, streams)
        _tidy(plan.folder)
        steps = (job.products != "none") * plan.training.total_steps(len(plan.rows))
        model = Model.from_pretrained(plan.folder).to(best_device())
        return Run(model, plan.folder, logged(plan.folder / "history.jsonl", steps))


def _train(job: Job, streams: Streams) -> None:
    """The training of a run; of several processes the first writes its folder."""
    plan, leads, history = job.plan(streams), world()[0] == 0, []
    model = untrained(job, streams) if job.products == "none" else _started(job, streams)
    if leads:
        for name in ("finetuned-*", "metrics-*", "queries-*", "map-*"):  # of earlier weights
            for old in plan.folder.glob(name):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
        known = {"job": asdict(job), "training": asdict(plan.training)}
        known |= {"extractors": streams.settings, "data": streams.catalogue.fingerprint}
        write_json(plan.folder / "job.json", known)
    if job.products != "none":
        watch, before = partial(glance, streams=streams), leads and glance(model, streams)
        options = {"watch": watch, "parts": None}
        if job.loaders:
            options["feed"] = partial(ahead, loaders=job.loaders)
        if job.micro or world()[1] > 1:
            options["parts"] = Parts(model, job.micro)
        history = pretrain(model, streams, plan.training, plan.folder, plan.rows, **options)
        history[0]["before"] = before
    if leads:
        with whole_file(plan.folder / "history.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in history))
        model.save_pretrained(plan.folder)
    meet()


def _tidy(folder: Path) -> None:
    """Remove what a finished run needs no more, and what a killed process left."""
    for path in (folder / "checkpoint.pt", *folder.glob("*.tmp")):
        path.unlink(missing_ok=True)


def finetuned(run: Run, job: Job, streams: Streams) -> Classifier:
    """The run's model fine-tuned, made once, in ``finetuned-<hash of how>`` of its folder."""
    tuning = job.plan(streams).tuning
    folder = run.folder / f"finetuned-{digest(asdict(tuning))}"
    with locked(folder / ".lock"):
        if not (folder / "classifier.safetensors").exists():
            torch.manual_seed(job.seed)
            classifier = Classifier(copy.deepcopy(run.model), labels_of(streams)).to(best_device())
            finetune(classifier, streams, tuning, folder)
            classifier.save_pretrained(folder)
        _tidy(folder)
    return Classifier.from_pretrained(folder).to(best_device())


def tuned_vectors(
    classifier: Classifier, streams: Streams, wanted: Rows, modalities: Iterable[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Fine-tuned features (N, H) and the five likeliest labels (N, 5) of the wanted rows over the
    whole catalogue, others NaN and None: for ``evaluate(catalogue, features, predicted=labels)``.
    """
    (hidden, predicted), count = classify(classifier, streams, wanted, modalities), len(streams)
    return spread(hidden, wanted, count, np.nan), spread(predicted, wanted, count, None)
