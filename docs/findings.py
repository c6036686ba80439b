"""``docs/findings.md``: what the recorded numbers say, in sentences and tables.

The words are written here; every number and every verdict among them is computed from ``results/``,
and a test finds digits that were typed. ``python docs/readme.py`` writes the page.
"""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path

import intervals
import numpy as np
import pandas as pd

from m5lib.embeddings import DEFAULT, PAPER
from m5lib.evaluation import stats
from m5lib.lab import claims, recording, study
from m5lib.modalities import from_codes

#: How data is called in sentences, by what result rows call it; and the verdicts of tables.
NAMES = {"shop": "the shop", "fashion": "the real products"}
WORDS = dict(confirmed="ahead", contradicted="behind", equivalent="level", undecided="undecided")


def series(frame: pd.DataFrame, model: str, given: str, variant: str = "") -> pd.Series:
    """mAP@10 (min(K, R)) of queries by seed, after pre-training or of a control."""
    wanted = {"task": "retrieval", "metric": "mAP@10", "convention": "min_k_r", "model": model}
    found = recording.pick(frame, wanted | {"modalities": given})
    found = found[found["state"].isin(["pretrained", "control"])]
    found = found[found["variant"] == variant] if variant else found
    return found.set_index("seed")["value"].sort_index()


def control(frame: pd.DataFrame, given: str) -> tuple[str, pd.Series]:
    """The best control that reads no more than these modalities, by validation products, and its
    mAP@10 of queries by seed."""
    allowed = set(from_codes(given))
    own = frame[[set(from_codes(reads)) <= allowed for reads in frame["modalities"]]]
    wanted = {"state": "control", "metric": "mAP@10", "convention": recording.VALIDATION}
    seen = recording.pick(own, wanted).groupby(["model", "modalities"])["value"].mean()
    model, reads = seen.idxmax()
    return model, series(frame, model, reads)


def points(value: float) -> str:
    """A difference in points, with its sign."""
    return f"{100 * value:+.1f}"


def interval(mean: float, low: float, high: float) -> str:
    """A difference in points, with its interval if it has one."""
    beside = f" [{points(low)}, {points(high)}]" if np.isfinite(low) else ""
    return f"{points(mean)}{beside}"


def row(data: str, first: str, one: pd.Series, second: str, other: pd.Series) -> dict:
    """A line of a comparison: both means in per cent, their difference over seeds, a verdict, and
    what the interval is over: each seed of the shop asks queries of its own."""
    both = pd.concat([one, other], axis=1, join="inner").to_numpy()
    test = stats.paired_seeds(both[:, 0], both[:, 1])
    line = {"data": NAMES.get(data, data), "first": first, "second": second}
    for name, values in (("of the first", both[:, 0]), ("of the second", both[:, 1])):
        line[name] = f"{100 * values.mean():.1f}"
    line["difference"] = interval(test.mean, test.low, test.high)
    line["over"] = "seeds and queries" if claims.kind(data) == "shop" else "seeds"
    return line | {"the first is": WORDS[claims.verdict(test, data)]}


def counted(rows: list[dict]) -> str:
    """Of so many comparisons how many went which way."""
    found = pd.Series([line["the first is"] for line in rows]).value_counts()
    several = [f"{word} in {found.get(word, 0)}" for word in WORDS.values()]
    return f"of {len(rows)} comparisons it is {', '.join(several)}."


def made(results: Path, *names: str) -> str:
    """From which files, of which code."""
    known = [(name, results / f"{name}.json") for name in names]
    several = {
        name: [run["commit"] for run in recording.read_results(path)["provenance"].values()]
        for name, path in known
        if path.exists()
    }
    files = (f"`results/{name}.json` (commit {', '.join(c)})" for name, c in several.items())
    return f"From {' and '.join(files)}."


def both(results: Path, name: str) -> list[tuple[str, pd.DataFrame]]:
    """The rows of a table on the shop and on the real products, where they are recorded."""
    files = {data: f"{name}_{data}.json" if data != "shop" else f"{name}.json" for data in NAMES}
    paths = {data: results / file for data, file in files.items()}
    return [(data, recording.load_results(p)) for data, p in paths.items() if p.exists()]


# --- the paper


def held(results: Path) -> tuple[list[str], pd.DataFrame]:
    """What of the paper held: each statement on each data."""
    frame, text, lines = claims.judged(results / "claims.json"), [], []
    for data, part in frame[frame["verdict"] != "not testable"].groupby("data"):
        count = part["verdict"].value_counts().reindex(claims.VERDICTS, fill_value=0)
        built = int((part["calibrated"] & (part["verdict"] == "confirmed")).sum())
        said = f"On {NAMES.get(data, data)}, of {len(part)} tested claims {count['confirmed']} are "
        said += f"confirmed, {count['contradicted']} contradicted, {count['equivalent']} found "
        said += f"equivalent within {100 * claims.margin(data):.0f} points and "
        said += f"{count['undecided']} left undecided, corrected for their number"
        said += f"; {built} of the confirmed are orders that it was made to show" if built else ""
        fair = part[~(part["calibrated"] | part["unaffordable"])]
        share = [100 * (own["verdict"] == "undecided").mean() for own in (part, fair)]
        shown = "orders that it was made to show and " * bool(part["calibrated"].any())
        small = part[part["unaffordable"]]["table"].str.replace(r" \(.*", "", regex=True).unique()
        said += f". Undecided are {share[0]:.0f} % of all, and {share[1]:.0f} % of the {len(fair)} "
        said += f"that are left without {shown}differences marked before the runs as too small for "
        said += f"any number of seeds that can be trained here ({', '.join(small)})"
        text.append(f"{said}.")
        for (table, statement), own in part.groupby(["table", "statement"], sort=False):
            n = own["verdict"].value_counts().reindex(claims.VERDICTS, fill_value=0)
            line = {"data": NAMES.get(data, data), "table": table, "the paper says": statement}
            line |= {"claims": len(own), **n.iloc[:4]}
            line["median difference, ours"] = points(own["difference"].median())
            paper = own["paper"].median()
            line["paper"] = points(paper) if paper == paper else ""
            mark = "built in" if own["calibrated"].all() else ""
            lines.append(line | {"mark": "too small" if own["unaffordable"].all() else mark})
    text.append(
        "The table's last column. *Too small*: judged before the runs too small to find, by the "
        "paper's difference. *Built in*: the shop was calibrated for it."
    )
    return text, pd.DataFrame(lines)


def failed(results: Path) -> tuple[list[str], pd.DataFrame]:
    """What did not hold, and why."""
    frame = claims.judged(results / "claims.json")
    undecided = frame[frame["verdict"] == "undecided"].dropna(subset=["paper", "detectable"])
    small = undecided[undecided["paper"] < undecided["detectable"]]
    middle = undecided[["paper", "detectable"]].median()
    text = [
        f"Of {(frame['verdict'] == 'undecided').sum()} undecided claims {len(undecided)} have a "
        f"published difference. For {len(small)} of these it is smaller than what our runs would "
        "find in four of five repetitions, so they say nothing of it (medians of all "
        f"{len(undecided)}: published {100 * middle['paper']:.1f} points, found "
        f"{100 * middle['detectable']:.1f}). `benchmarks/design.csv` says what more seeds and "
        "queries would decide.",
        "The table lists what is contradicted, each claim tested by itself at five per cent, and "
        "what the correction for so many tests leaves of it.",
        "Figure 5 is judged by the cosine of a product's own picture and title *less* that with "
        "other products' titles: the plain one, which the paper draws, also rises when all vectors "
        "point one way.",
    ]
    lines = [
        {
            "data": NAMES.get(row.data, row.data),
            "contradicted": f"{row.table}, {row.metric}: {row.better} over {row.worse}",
            "ours": interval(row.difference, row.low, row.high),
            "after the correction": row.verdict,
        }
        for row in frame[frame["alone"] == "contradicted"].itertuples()
    ]
    return text, pd.DataFrame(lines)


# --- what each part does


def scores(results: Path) -> tuple[list[str], pd.DataFrame]:
    """SIMCL's scores: with, without, free, released."""
    lines, text = [], []
    forms = {"no scores": "none", "free scores": "free", "released scores": "released scores"}
    for data, rows in both(results, "simcl"):
        given = max(rows["modalities"], key=lambda name: name.count("+"))
        for label, form in forms.items():
            for variant in (PAPER, DEFAULT):
                own, other = (
                    series(rows, f"scale, {x}", given, variant) for x in ("IMCL+PRE", form)
                )
                lines.append(row(data, f"SCALE, {given}, `{variant}`", own, label, other))
        seen = recording.pick(rows, study.number("cosine")).groupby("model")["value"].mean()
        text.append(
            f"On {NAMES[data]} a product's own picture and title end at a cosine of "
            f"{seen['scale, IMCL+PRE']:.2f} after the fusion with SCALE's scores and "
            f"{seen['scale, released scores']:.2f} with the released form."
        )
    none = [line for line in lines if line["second"] == "no scores"]
    released = [line for line in lines if line["second"] == "released scores"]
    text = [
        "A score multiplies the logits of a product and a pair of modalities, so it acts as a "
        f"temperature, beside one that is learned. With scores against without: {counted(none)}",
        "The released form lets training lower its loss by pulling a product's modalities apart "
        f"(notebook 09). SCALE's against it: {counted(released)} {' '.join(text)}",
    ]
    frame = claims.judged(results / "claims.json")
    for reading, what in (("scores", "SCALE's scores act on"), ("losses", "the model trains with")):
        part = frame[frame["source"] == f"Table 6 ({reading})"]
        n = part["verdict"].value_counts()
        said = f"Table 6, its ticks read as the losses that {what}: of {len(part)} claims "
        said += f"{n.get('confirmed', 0)} confirmed, {n.get('contradicted', 0)} contradicted."
        text.append(said if len(part) else f"{said.partition(':')[0]}: not judged yet.")
    return [*text, made(results, "simcl", "simcl_fashion")], pd.DataFrame(lines)


def losses(results: Path) -> tuple[list[str], pd.DataFrame]:
    """What each loss teaches: Table 6 read as losses; and another contrast."""
    lines, names = [], {"IMCL+PRE": "both losses", "gram": "both, GRAM's contrast"}
    pairs = (("IMCL+PRE", "no loss"), ("contrast only", "no loss"))
    pairs += (("masked tasks only", "no loss"), ("IMCL+PRE", "contrast only"))
    pairs += (("gram", "IMCL+PRE"),)
    before = study.number("mAP@10_pretrain")
    numbers = {f"mAP@10, `{name}`": before | {"variant": name} for name in (PAPER, DEFAULT)}
    for data, rows in both(results, "simcl"):
        for words, number in (numbers | {"accuracy": study.number("accuracy")}).items():
            for one, other in pairs:
                sides = [
                    recording.pick(rows, number | {"model": f"scale, {label}"})
                    for label in (one, other)
                ]
                a, b = (side.set_index("seed")["value"].sort_index() for side in sides)
                one, other = (names.get(label, label) for label in (one, other))
                lines.append(row(data, f"{one}, {words}", a, other, b))
    whole, contrast, masked, together, gram = (lines[n::5] for n in range(5))
    text = [
        f"Pre-training with both losses against random weights: {counted(whole)}",
        f"The contrast alone against random weights: {counted(contrast)}",
        f"The masked tasks alone against random weights: {counted(masked)}",
        f"Masked tasks beside the contrast against the contrast alone: {counted(together)}",
        "GRAM's contrast, which compares all modalities at once, instead of InfoNCE's of pairs, "
        f"each beside the masked tasks (notebook 09): {counted(gram)} The first of these seeds on "
        "the real products had chosen it for this comparison.",
        f"mAP@10 is before fine-tuning: by `{PAPER}`, the first tokens of the fusion, which no "
        f"masked task trains directly, and by `{DEFAULT}`, which reads all tokens. Accuracy is "
        "after it. Short trainings do not tell what masked tasks are worth; "
        "`benchmarks/converge.py` trains each form for longer ([below](#how-long-is-enough)).",
        made(results, "simcl", "simcl_fashion"),
    ]
    return text, pd.DataFrame(lines)


def fused(results: Path) -> tuple[list[str], pd.DataFrame]:
    """What the fused vector is worth against its parts and against no model."""
    lines = []
    for data, rows in both(results, "fused"):
        for given in sorted({"I+T", "I+T+Tab"} & set(rows["modalities"])):
            paper, default = (series(rows, "scale_fused", given, v) for v in (PAPER, DEFAULT))
            before = series(rows, "scale_fused", given, "encoded_first")
            best, reference = control(rows, given)
            name = f"fused first tokens, {given}"
            lines.append(row(data, name, paper, "first tokens before the fusion", before))
            lines.append(row(data, f"`{DEFAULT}`, {given}", default, "fused first tokens", paper))
            lines.append(row(data, f"`{DEFAULT}`, {given}", default, f"control {best}", reference))
    parts, beside, against = (lines[n::3] for n in range(3))
    text = [
        f"The fused vector against its own parts, `scale_fused`: {counted(parts)}",
        f"Both beside each other, decorrelated and weighted, against the fused alone: "
        f"{counted(beside)}",
        f"Against the best control, by validation products, that reads no more: {counted(against)}",
        made(results, "fused", "fused_fashion"),
    ]
    return text, pd.DataFrame(lines)


def as_in_the_paper(path: Path, control: str) -> dict:
    """SCALE by the paper's read-out against a control, mAP@10 from what notebook 10 kept of every
    query: both means in per cent, their difference, a verdict."""
    wanted = study.number("mAP@10_pretrain") | {"variant": PAPER}
    table = intervals.read_asked(path, {"SCALE", control})
    test = claims.tested(table, ("SCALE", wanted), (control, wanted))
    means = (study.values(table, wanted).loc[label].mean() for label in ("SCALE", control))
    one, other = (f"{100 * mean:.1f}" for mean in means)
    line = {"SCALE": one, "control": other, "second": control}
    line["difference"] = interval(*(test[key] for key in ("difference", "low", "high")))
    return line | {"over": "seeds and queries", "the first is": WORDS[test["verdict"]]}


def after_tuning(path: Path, line: dict) -> str:
    """Accuracy of the best model after fine-tuning, beside SCALE's and the control's; ``path``,
    ``line``: a ``_best.csv`` and its first line."""
    table = pd.read_csv(path.with_name(path.name.replace("_best.csv", "_table5.csv")), index_col=0)
    ours, label = table["accuracy, ours"], line["first"].rpartition(", ")[0]
    control = next(name for name in ours.index if name.startswith("control"))
    names = dict.fromkeys((label, "SCALE", control))
    several = ", ".join(f"{name} {ours[name]}" for name in names)
    return f"That is before fine-tuning. Accuracy after it in per cent: {several} (a linear probe)."


def best(results: Path) -> tuple[list[str], pd.DataFrame]:
    """Which model and read-out is best given picture and title, by validation products, and what it
    has more than its rivals on the queries (notebook 10)."""
    lines, text = [], []
    for data, name in NAMES.items():
        path = results / f"baselines{f'_{data}' * (data != 'shop')}_best.csv"
        if not path.exists():
            continue
        own = []
        for line in pd.read_csv(path).itertuples():
            sides = [side.rsplit(", ", 1) for side in (line.best, line.rival)]
            model, rival = (x if "control" in x else f"{x}, `{by}`" for x, by in sides)
            several = (x / 100 for x in (line.difference, line.low, line.high))
            own.append({"data": name, "first": model, "second": rival})
            own[-1] |= {"difference": interval(*several), "over": "seeds and queries"}
            own[-1] |= {"the first is": WORDS[line.verdict]}
        said = f"On {name}, best on validation products: {own[0]['first']}. Against SCALE, CLIP, "
        text.append(
            f"{said}CAPTURE and the best control, {counted(own)} {after_tuning(path, own[0])}"
        )
        kept = path.with_name(path.name.replace("_best.csv", "_queries.parquet"))
        for second in [line["second"] for line in own if "control" in line["second"]]:
            first = f"SCALE, `{PAPER}`"
            own.append({"data": name, "first": first} | as_in_the_paper(kept, second))
            text.append(
                f"By the paper's own read-out SCALE has a mAP@10 of {own[-1].pop('SCALE')} on "
                f"{name}, the {second} {own[-1].pop('control')}: {own[-1]['difference']}."
            )
        lines += own
    return text or ["Not recorded yet: `make results`."], pd.DataFrame(lines)


#: What is real by itself, and how its rows are called.
REAL = {"pictures": "real pictures", "titles": "real titles"}


def real(results: Path) -> tuple[list[str], pd.DataFrame]:
    """What real features change, on all the real products."""
    rows, lines = recording.load_results(results / "weights.json"), []
    models = ("plain", "real pictures", "real pictures and titles")
    for given in ("I+T", "I+T+Tab"):
        plain, pictures, titles = (series(rows, model, given, DEFAULT) for model in models)
        best, own = control(rows, given)
        lines.append(row("fashion", f"both, {given}", titles, "plain", plain))
        lines.append(row("fashion", f"a network's pictures, {given}", pictures, "plain", plain))
        words = series(rows, "real titles", given, DEFAULT)
        lines.append(row("fashion", f"BERT's titles, {given}", words, "plain", plain))
        lines.append(
            row("fashion", f"BERT's titles too, {given}", titles, "plain titles", pictures)
        )
        lines.append(row("fashion", f"both, {given}", titles, best.replace(", ", " with "), own))
    pair, table = (series(rows, models[-1], given, DEFAULT) for given in ("I+T", "I+T+Tab"))
    lines.append(row("fashion", "both, the table too", table, "both, I+T", pair))
    each = {m: series(rows, m, "I+T", DEFAULT) for m in (*models, "real titles")}
    gain = (each[models[-1]] - each["plain"]).dropna()
    alone = {what: (each[m] - each["plain"]).mean() for what, m in REAL.items()}
    most, less = sorted(alone, key=lambda what: -alone[what])
    text = [
        f"Given picture and title, real weights for both bring {points(gain.mean())} points (mean "
        f"of {len(gain)} seeds); for {most} alone {points(alone[most])}, for {less} alone "
        f"{points(alone[less])}. Which of these are more than chance says the table.",
        made(results, "weights"),
    ]
    return text, pd.DataFrame(lines)


def take(results: Path) -> tuple[list[str], pd.DataFrame]:
    """What a reader should take for products of his own, by validation products."""
    rows, tables, text = recording.load_results(results / "weights.json"), {}, []
    for given, words in (("I+T", "picture and title"), ("I+T+Tab", "the table too")):
        wanted = {"convention": recording.VALIDATION, "metric": "mAP@10", "modalities": given}
        seen = recording.pick(rows, wanted).query("state == 'pretrained'")
        seen = seen[~seen["variant"].str.contains(",")]
        tables[given] = means = seen.pivot_table(index="model", columns="variant", values="value")
        model, variant = means.stack().idxmax()
        best, default = (100 * means.loc[model, name] for name in (variant, DEFAULT))
        said = "" if variant == DEFAULT else f"; by the default `{DEFAULT}` {default:.1f} %"
        text.append(f"Given {words}, best: *{model}* read as `{variant}` ({best:.1f} %{said}).")
    worst = pd.concat(tables).groupby(level="model").min().max()
    safe = worst.idxmax()
    text = [
        f"{' '.join(text)} The read-out that loses least whichever of the two is given is "
        f"`{safe}`{', the default, by which the library searches' * (safe == DEFAULT)}.",
        "Use real weights for titles and pictures (`EXTRAS=real`) before anything else, and "
        "compare with a control on your own products (notebook 05). The table shows mAP@10 of "
        "validation products in per cent.",
    ]
    table = (100 * pd.concat(tables, names=["given"])).round(1).map("{:.1f}".format)
    return text, table.reset_index()


def answers(results: Path) -> list[str]:
    """In short, for the front page: what pre-training brings, each modality, the rivals, the
    scores, the losses, and how much of the paper is decided."""
    text, (_, taught) = [], losses(results)
    whole = taught[taught["first"].str.startswith("both losses") & (taught["second"] == "no loss")]
    names = {"of the second": "random", "of the first": "trained", "the first is": "verdict"}
    whole = whole.rename(columns=names)
    for data, rows in both(results, "simcl"):
        numbers = "; ".join(
            f"{line.first.removeprefix('both losses, ').replace('`', '')} {line.random} → "
            f"{line.trained} ({line.verdict})"
            for line in whole[whole["data"] == NAMES[data]].itertuples()
        )
        text.append(
            f"**Pre-training without labels against random weights**, {NAMES[data]}, "
            f"{rows['seed'].nunique()} seeds, in % (accuracy after fine-tuning): {numbers}."
        )
    for data, rows in both(results, "modality_count"):
        rows = rows[rows["model"] == "scale"]
        steps = ("T", "I+T", "I+T+Tab", "I+T+Tab+V", "I+T+Tab+V+A")
        each = {given: 100 * series(rows, "scale", given, DEFAULT) for given in steps}
        several = ", ".join(
            f"{given} {x.mean():.1f} ± {x.std():.1f}" for given, x in each.items() if len(x)
        )
        text.append(
            f"**A modality more**, {NAMES[data]}, {rows['seed'].nunique()} seeds, mAP@10 in % by "
            f"`{DEFAULT}`: {several}."
        )
    said, table = best(results)
    for data, own in table.groupby("data", sort=False) if len(table) else ():
        rivals = "; ".join(
            f"{row.second.replace('`', '')} {row.difference.split()[0]} ({row.verdict})"
            for row in own.rename(columns={"the first is": "verdict"}).itertuples()
            if row.first == own["first"].iloc[0]
        )
        first = own["first"].iloc[0].replace("`", "")
        text.append(
            f"**Trained on and given picture and title**, on {data}, the best model and read-out "
            f"by validation products is {first}. Its lead before fine-tuning, in points of mAP@10 "
            f"of queries: over {rivals}."
        )
    if lines := [line for line in said if line.startswith("By the")]:
        text.append(f"**The same against a control without a model.** {' '.join(lines)}")
    _, table = scores(results)
    for other in ("no scores", "released scores"):
        lines = table[table["second"] == other].to_dict("records")
        text.append(
            f"**SIMCL's harmony scores as in SCALE, against {other}** (both data, two read-outs): "
            f"{counted(lines)}"
        )
    for other, what in (
        ("no loss", "The contrast alone, against random weights"),
        ("contrast only", "Masked tasks beside the contrast, against the contrast alone"),
    ):
        first = "contrast" if other == "no loss" else "both losses"
        lines = taught[(taught["second"] == other) & taught["first"].str.startswith(first)]
        text.append(
            f"**{what}** (both data; mAP@10 by two read-outs, and accuracy): "
            f"{counted(lines.to_dict('records'))}"
        )
    frame = claims.judged(results / "claims.json")
    tested = frame[frame["verdict"] != "not testable"]["verdict"].value_counts()
    several = ", ".join(f"{tested.get(word, 0)} {word}" for word in claims.VERDICTS[:4])
    text.append(f"**The paper's orderings**: of {tested.sum()} tests {several}.")
    return [f"- {line}" for line in text]


# --- the machinery


def of_benchmark(script: str) -> Callable:
    """A part of the page about what a script of ``benchmarks/`` recorded, where it did."""

    def told(part: Callable) -> Callable:
        @wraps(part)
        def of(results: Path) -> tuple[list[str], pd.DataFrame]:
            path = results.parent / "benchmarks" / f"{script}.json"
            if not path.exists():
                return [f"Not recorded yet: `python benchmarks/{script}.py`."], pd.DataFrame()
            return part(json.loads(path.read_text(encoding="utf-8")))

        return of

    return told


@of_benchmark("converge")
def converged(found: dict) -> tuple[list[str], pd.DataFrame]:
    """What ``benchmarks/converge.py`` recorded; enough is a length that has converged and is within
    a point of the best."""
    ends, text = pd.DataFrame(found["ends"]), []
    for key, own in ends.groupby(["data", "profile", "training", "model", "seed"], sort=False):
        data, profile, training, model, seed = key
        near = own[DEFAULT] >= own[DEFAULT].max() - stats.CONVERGED  # of the best length
        enough = own[own["converged"] & near].sort_values("epochs")
        said = "no length that was tried is enough"
        if len(enough):
            epochs, steps = enough.iloc[0][["epochs", "steps"]]
            said = f"{epochs:g} epochs ({steps} steps) are enough"
        where = f"{NAMES.get(data, data).capitalize()}, {profile}, {training} training products"
        text.append(f"{where}, {model}, seed {seed}: {said}.")
    text.append("One seed each: differences of a few points mean nothing.")
    for data in ends["data"].unique():
        text.append(f"![How quality grows](../benchmarks/converge_{data}.png)")
    ends["epochs"] = ends["epochs"].map("{:g}".format)
    for name in (DEFAULT, "gained", "accuracy"):
        ends[name] = (100 * ends[name]).round(1).map("{:.1f}".format)
    return text, ends.rename(columns={"gained": "gained in the last quarter"})


@of_benchmark("more")
def more(found: dict) -> tuple[list[str], pd.DataFrame]:
    """What ``benchmarks/more.py`` recorded: quality by training products, over the seeds that have
    them all; nothing of a catalogue where none has."""
    rows = pd.DataFrame(found["rows"])
    numbers, text, tables = [DEFAULT, PAPER, "accuracy"], [], []
    for (data, profile, listed), own in rows.groupby(["data", "profile", "listings"], sort=False):
        wide = own.pivot(index="training", columns="seed", values=numbers)
        whole = wide.columns.levels[1][wide.notna().T.groupby("seed").all().all(axis=1)]
        wide = wide.loc[:, (slice(None), whole)]
        sizes = wide.index
        if not len(whole) or len(sizes) < 2:
            continue
        values, half = wide[DEFAULT], max(sizes[0], sizes[sizes <= 0.6 * sizes[-1]].max())
        most, gains = values.loc[sizes[-1]].to_numpy(), []
        for few in dict.fromkeys((sizes[0], half)):
            test = stats.paired_seeds(most, values.loc[few].to_numpy())
            gains.append(f"instead of {few} {interval(*test[:3])}")
        text.append(
            f"On {NAMES.get(data, data)} ({listed} in all, {own['queries'].iloc[0]} queries, "
            f"profile {profile}, {own['steps'].iloc[0]} steps each, seeds: {len(whole)}), "
            f"{sizes[-1]} training products bring, in points of mAP@10 by `{DEFAULT}`: "
            f"{', '.join(gains)}."
        )
        said = {name: recording.said(wide[name]) for name in numbers}
        named = {"data": NAMES.get(data, data), "listings": listed, "seeds": len(whole)}
        tables.append(pd.DataFrame(said).reset_index().assign(**named))
    if not tables:
        return ["No seed has been run with every number of products yet."], pd.DataFrame()
    text.append("The model is `scale`. Few seeds: differences of a few points mean nothing.")
    text.append("![How quality grows with training products](../benchmarks/more.png)")
    return text, pd.concat(tables)[["data", "listings", "training", "seeds", *numbers]]


@of_benchmark("starts")
def starts(found: dict) -> tuple[list[str], pd.DataFrame]:
    """What ``benchmarks/starts.py`` recorded: rivals from random weights and from MiniLM."""
    rows, text, tables = pd.DataFrame(found["rows"]), [], []
    for (data, profile, steps), own in rows.groupby(["data", "profile", "steps"], sort=False):
        for readout in (DEFAULT, PAPER):
            values = own.pivot(index="seed", columns=["start", "model"])[f"mAP@10, {readout}"]
            both = [m for m in own["model"].unique() if {("random", m), ("MiniLM", m)} <= {*values}]
            sides = {x: values[x].dropna() for x in values}
            gains = [
                row(data, f"{m}, MiniLM, `{readout}`", sides["MiniLM", m], "random weights",
                    sides["random", m])
                for m in both
            ]  # fmt: skip
            ahead = {
                start: [
                    row(data, f"SCALE, {start}, `{readout}`", sides[start, "SCALE"], m,
                        sides[start, m])
                    for m in both if m != "SCALE" and "SCALE" in both
                ] for start in ("random", "MiniLM")
            }  # fmt: skip
            text.append(
                f"By `{readout}`: titles from MiniLM against random weights, of each model: "
                f"{counted(gains)} SCALE against the others, all from random weights: "
                f"{counted(ahead['random'])} All from MiniLM: {counted(ahead['MiniLM'])}"
            )
            tables += gains + ahead["random"] + ahead["MiniLM"]
        text.append(
            f"{NAMES.get(data, data).capitalize()}, {own['training'].iloc[0]} training products, "
            f"profile `{profile}`, {steps} steps each, {own['seed'].nunique()} seeds, before "
            "fine-tuning; each model at the rate and temperature that it chose for the table of "
            "baselines, from random weights and for longer trainings. MiniLM is wider than the "
            "profile, so its gain is of weights and size together."
        )
    return text, pd.DataFrame(tables)


@of_benchmark("nothing")
def nothing(found: dict) -> tuple[list[str], pd.DataFrame]:
    """What ``benchmarks/nothing.py`` recorded."""
    again = found["put together anew"]
    said = f"One configuration against itself: {found['seeds']} seeds ({found['data']}, "
    said += f"{found['training']} training products, {found['queries']} queries), put into groups "
    said += f"and compared as if they were rivals. In {found['decided']} of {found['verdicts']} "
    said += "comparisons one side is called ahead, where none is"
    more = f"; in {again['decided']} of {again['verdicts']} with other groups of the same seeds, "
    more += f"where chance would give {0.05 * again['verdicts']:.0f} (they share trainings)"
    return [f"{said}{more if again['verdicts'] else ''}."], pd.DataFrame()


@of_benchmark("again")
def again(found: dict) -> tuple[list[str], pd.DataFrame]:
    """What ``benchmarks/again.py`` found."""
    rows = pd.DataFrame(found["rows"])
    numbers, same = rows["numbers"].sum(), rows["same"].sum()
    said = (
        f"{len(rows)} runs of an earlier recording were made again, on another machine and by a "
        "later version of the code. Of their"
    )
    said += f" {numbers} numbers {same} are the same to the last digit"
    most = f", the others differ by {100 * rows['most'].max():.2f} points at most"
    text = [f"{said}{most * bool(same < numbers)}. A training on titles alone can differ by "
            "far more (`LOG.md`)."]  # fmt: skip
    if same < numbers:
        text.append("Another processor's rounding is enough for that; on the same kind runs made "
                    "again are the same ([how](numbers.md#provenance)). Do not trust one run's "
                    "last points; trust means over seeds, with their intervals.")  # fmt: skip
    return text, rows.assign(most=100 * rows["most"])


PARTS = {
    "What of the paper held": held,
    "What did not, and why": failed,
    "What SIMCL's scores do, and what they do not": scores,
    "What each loss teaches": losses,
    "What the fused vector is worth against its parts": fused,
    "Which model is best, given picture and title": best,
    "What real features change": real,
    "What a BERT start changes between models": starts,
    "What to take for products of your own": take,
    "How long is enough": converged,
    "What more training products bring": more,
    "Seeds of nothing": nothing,
    "Made again": again,
}
HEAD = (
    "# Findings\n\nGenerated by `python docs/readme.py`: the words are written, every number and "
    "verdict among them is computed from `results/`. Numbers are per cent of mAP@10 where nothing "
    "else is said, differences are points with a 95 % interval. *Ahead*, *behind*: the whole "
    "interval lies above, below zero. *Level*: it contains zero and stays within "
    f"±{100 * claims.margin('fashion'):.0f} points (on the shop "
    f"±{100 * claims.margin('shop'):.0f}). *Undecided*: it contains zero and reaches beyond. "
    "The claims' verdicts are made after a correction for their number, by which *equivalent* and "
    "*undecided* may leave zero out ([numbers.md](numbers.md#verdicts-on-the-papers-claims)). "
    "*Over*: what the interval is over. "
    "On the real products all seeds ask the same queries, so an interval over seeds alone "
    "says what another training would bring, and nothing of other queries. These comparisons are "
    "by themselves; only the paper's claims are corrected for their number. How numbers are made: "
    "[numbers.md](numbers.md).\n"
)


def page(results: Path, markdown: Callable[[pd.DataFrame], str]) -> str:
    """The whole page, from what is recorded."""
    parts = [HEAD]
    for title, part in PARTS.items():
        text, table = part(results)
        parts.append(f"## {title}\n\n" + "\n\n".join(text) + "\n")
        if len(table):
            parts.append(markdown(table.set_index(table.columns[0])) + "\n")
    return "\n".join(parts)
