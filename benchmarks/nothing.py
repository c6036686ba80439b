"""Seeds of nothing: one configuration against itself, through the very code that judges rivals.

    python benchmarks/nothing.py --data FOLDER --products 3000 --epochs 4    # or --data shop

Trainings that differ only in their seed, on the same products. Three of them stand for one model
and three for another, by seed as rivals are; what :func:`m5lib.lab.claims.tested` decides is false.
Twelve seeds make two such tests of each number, twelve verdicts, of which at most one should be
decided; the same seeds put together anew, ``--again`` times, say how often it happens (those tests
share their trainings). Finished runs are loaded: an interrupted call goes on.
"""

import time

import numpy as np
from converge import parser_of

from m5lib import ROOT
from m5lib.data import write_json
from m5lib.lab import claims, recording, runs, study

NAMES = ("accuracy", "mAP@1_pretrain", "mAP@1_finetune", "mAP@10_finetune", "NMI", "purity")
SIDES = ("one", "other")


def rivals(studies: list[study.Study], order: list[int]) -> list[dict]:
    """Seeds in this order, six by six, three for each side: the verdicts on every number."""
    found = []
    for start in range(0, len(order) - 5, 6):
        pairs = enumerate(order[start : start + 6])
        table = {(SIDES[n % 2], n // 2): studies[seed] for n, seed in pairs}
        for name in NAMES:
            sides = [(side, study.number(name, "pretrained")) for side in SIDES]
            test = claims.tested(table, *sides)
            found.append({"number": name, "seeds": order[start : start + 6]} | test)
    return found


def decided(verdicts: list[dict]) -> int:
    """How many say that one side is ahead."""
    return sum(row["verdict"] in ("confirmed", "contradicted") for row in verdicts)


def main() -> None:
    """Train, judge, count, write."""
    parser = parser_of(__doc__)
    option = parser.add_argument
    option("--epochs", type=float, default=0.0, help="of pre-training; 0: the profile's")
    option("--seeds", type=int, default=12, help="six for each test")
    option("--again", type=int, default=50, help="further ways to put the seeds together")
    asked, begun = parser.parse_args(), time.monotonic()
    size, studies = study.sized(asked.profile, asked.products), []
    catalogue, features = runs.load(asked.data, size)
    streams = runs.streams_of(catalogue, features, size)
    for seed in range(asked.seeds):
        job = runs.Job(profile=asked.profile, seed=seed, epochs=asked.epochs)
        studies.append(study.study(job, streams, "nothing"))
        print(f"seed {seed}: {studies[-1].run}, {time.monotonic() - begun:.0f} s", flush=True)
    apart, rng = rivals(studies, list(range(asked.seeds))), np.random.default_rng(0)
    mixed = [rivals(studies, rng.permutation(asked.seeds).tolist()) for _ in range(asked.again)]
    several = [row for verdicts in mixed for row in verdicts]
    made = recording.provenance(asked.profile, 0, time.monotonic() - begun)
    content = {"provenance": made | {"products": asked.products, "epochs": asked.epochs}}
    content |= {"data": catalogue.name, "training": len(catalogue.split("train"))}
    content |= {"queries": len(catalogue.split("query")), "seeds": asked.seeds}
    content |= {"verdicts": len(apart), "decided": decided(apart), "tests": apart}
    by_name = {name: decided([row for row in several if row["number"] == name]) for name in NAMES}
    content["put together anew"] = {"verdicts": len(several), "decided": decided(several)}
    content["put together anew"]["by number"] = by_name
    write_json(ROOT / "benchmarks" / "nothing.json", content)
    print(f"{decided(apart)} of {len(apart)} decided; anew {decided(several)} of {len(several)}")


if __name__ == "__main__":
    main()
