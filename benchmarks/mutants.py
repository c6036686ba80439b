r"""Do the tests notice a changed sign, side, split or leak? One small fault at a time is put into a
copy of the repository, and the test that should turn red is run.

    python benchmarks/mutants.py [--only NAME]   # a part of its name; writes mutants.json

An entry of :data:`MUTANTS`: its name and the test; below, the old text, which must stand exactly
once in the file, and after ``==>`` the new. A fault that no test can see has a line ``why:``.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: Imported once; every test runs in a fork of this process, which saves most of its time.
HEAVY = "captum.attr hypothesis jaxtyping pyarrow.parquet pytest sklearn.cluster torch transformers"
#: ``# file tests``, then its faults. First those that survived at 29b8d5a, then others.
MUTANTS = r"""
# m5lib/lab/claims.py lab/test_claims.py
second side by the first's number | test_each_side_is_read_by_its_own_number_query_by_query
    own) for seed in seeds] for label, own ==> better[1]) for seed in seeds] for label, own
queries never shared | test_each_side_is_read_by_its_own_number_query_by_query
    shared = len({one.data for one, _ in sides[0]}) == 1 ==> shared = False
queries of one model only | test_queries_that_only_one_side_could_ask_do_not_count
    axis=1, join="inner") ==> axis=1).fillna(0.0)
seeds of clusters the other way | test_clusters_are_compared_by_their_products
    one.value(x) - other.value(y) for ==> other.value(y) - one.value(x) for
confirmed by the mean | test_an_interval_that_touches_zero_decides_nothing
    "confirmed" if test.low > 0 ==> "confirmed" if test.mean > 0 and test.p < 0.2
Table 5 after fine-tuning | test_each_table_is_judged_by_the_numbers_that_it_prints
    source.startswith("Table 5") ==> source.startswith("Table 55")
finetuned means pretrained | test_each_table_is_judged_by_the_numbers_that_it_prints
    " finetuned": number("mAP@1_finetune") ==> " finetuned": number("mAP@1_pretrain")
verdicts shown per ten | test_verdicts_follow_the_interval
    (100 * frame[column] ==> (10 * frame[column]
sides of a difference swapped | test_a_difference_is_the_first_label_less_the_second_in_per_cent
    (one, wanted), (other, wanted) ==> (other, wanted), (one, wanted)
one side not measured | test_a_side_that_was_not_measured_is_not_testable
    elif any(np.isnan( ==> elif all(np.isnan(
uncorrected verdicts | test_verdicts_are_corrected_for_their_number
    differs & (low > 0), differs & (high < 0) ==> low > 0, high < 0
equivalent by chance | test_verdicts_are_corrected_for_their_number
    within = same & ( ==> within = (
few seeds equivalent as if many | test_verdicts_are_corrected_for_their_number
    stats.level(inside, spread, common, seeds) ==> stats.level(inside, 0.0, spread + common, seeds)
equivalence measured from zero | test_verdicts_are_corrected_for_their_number
    inside = margin(row.data) - abs(row.difference) ==> inside = margin(row.data)
as sure of the shop as of real products | test_an_interval_between_the_margins_is_equivalent
    0.05 if kind(data) == "shop" else 0.03 ==> 0.05
the shop with other features as real products | test_the_shop_with_other_features_is_the_shop
    return data.partition(" (")[0] ==> return data
a seed that one side lacks ends a claim | test_a_claim_is_judged_by_the_seeds_that_both_sides_have
    set.intersection(*there)): ==> set.union(*there)):
orders built in, in all products | test_the_shop_with_other_features_is_the_shop
    data in several.split() for ==> bool(several) for
# m5lib/lab/recording.py test_readme.py
seeds compared by their best | test_compact_and_ladder_tables
    "variant"], sort=False)["value"].mean() ==> "variant"], sort=False)["value"].max()
# docs/readme.py test_readme.py
chance as hits | test_attributions_table_says_what_was_measured
    values="hits") ==> values="chance")
losses in each other's row | test_what_each_loss_teaches_stands_in_its_own_row
    "masked tasks only", "contrast only", ==> "contrast only", "masked tasks only",
calibrated anywhere | lab/test_claims.py::test_calibrated_orders_are_counted_apart
    claims["calibrated"] & (claims["verdict"] == "confirmed") ==> claims["verdict"] == "confirmed"
# m5lib/lab/study.py lab/test_study.py
a study reports validation | test_a_study_reports_the_query_split
    hidden, by_query, predicted=labels) ==> hidden, by_query, "validation", predicted=labels)
choices made on queries | test_a_study_reports_the_query_split
    evaluate.quality(catalogue, vectors) ==> evaluate.quality(catalogue, vectors, "query")
the worst rate | test_rivals_take_what_validation_products_find_best
    np.argmax(means) ==> np.argmin(means)
rates tried with a table's seed | test_rivals_take_what_validation_products_find_best
    1001, 1002) ==> 0, 1)
rates decided by one seed | test_rivals_take_what_validation_products_find_best
    seeds = CHOOSING[1:] if len(close) ==> seeds = () if len(close)
a look one step early | test_looks_are_those_before_and_after_each_quarter
    (line["step"] + 1) / len(history) ==> line["step"] / len(history)
conventions averaged | test_tables_beside_the_papers
    wanted | {"convention": convention}) ==> wanted)
rows of fewer seeds beside others | test_tables_beside_the_papers
    rows[rows["seed"].map(whole)] ==> rows
of equals the last rate | test_rivals_take_what_validation_products_find_best
    ways if row in ways else [row, *ways] ==> ways if row in ways else [*ways, row]
# notebooks/05_downstream.ipynb lab/test_notebooks.py
the asked answer themselves | test_runs_on_tiny[05_downstream]
    gallery=v[answers] ==> gallery=v[asks]
fine-tuned, given everything | test_runs_on_tiny[05_downstream]
    streams, needed, from_codes(s)) ==> streams, needed)
# notebooks/14_released.ipynb lab/test_notebooks.py
the control is the model | test_runs_on_tiny[14_released]
    runs.untrained(job, those)) ==> run.model)
# m5lib/evaluation/evaluate.py evaluation/test_evaluate.py
a probe learns what it is tested on | test_a_probe_learns_nothing_from_the_products_it_is_tested_on
    train[labelled[train]], test
    ==> np.append(train[labelled[train]], test[labelled[test]]), test
ids are not passed on | test_a_query_is_never_its_own_hit
    ids[asking], ids[offered]) ==> None, None)
three times the same seed | test_clustering_is_the_mean_of_three_starts
    metrics.cluster(part, len(names), seed) ==> metrics.cluster(part, len(names), 0)
clusters of the gallery | test_clustering_is_the_mean_of_three_starts
    in catalogue.split(split) if ==> in catalogue.split("gallery") if
weights fitted on queries | test_a_modality_counts_as_much_as_helps_validation_products
    return quality(catalogue, matrix) ==> return quality(catalogue, matrix, "query")
ten found of four listed | test_precision_of_fine_retrieval_asks_whose_product_is_listed_so_often
    listed >= k for k in CUTS ==> listed >= 1 for k in CUTS
the worst weight | test_a_modality_counts_as_much_as_helps_validation_products
    count = max(tried, ==> count = min(tried,
# m5lib/evaluation/metrics.py evaluation/test_clusters.py
a scaler sees the test | test_a_probe_answers_for_each_product_whatever_else_is_tested
    not sparse.issparse(train)).fit(train) ==> not sparse.issparse(train)).fit(test)
AP over the list's hits | evaluation/test_metrics.py::test_average_precision_equals_its_formula
    "min_k_r": np.minimum(k, positives) ==> "min_k_r": np.minimum(k, matched.sum(axis=1))
NMI by the larger entropy | evaluation/test_stats.py::test_scores_of_drawn_products
    mean = (one + other) / 2 ==> mean = np.maximum(one, other)
# m5lib/evaluation/stats.py evaluation/test_stats.py
few seeds as if many | test_chance_alone_is_called_a_difference_once_in_twenty_or_less
    t = special.stdtrit(seeds - 1, p / 2) ==> t = special.ndtri(p / 2)
queries that all seeds share are forgotten | test_queries_are_compared_as_written
    common = _common(np.stack(gains, axis=1)) / len(gains[0]) ==> common = 0.0
a seed's own luck with its queries counts twice | test_queries_are_compared_as_written
    - (seeds > 1) * np.trace(covariance) ==> - 0 * np.trace(covariance)
own queries taken for the same | test_queries_are_compared_as_written
    isinstance(a, np.ndarray) and isinstance(b, np.ndarray) ==> True
products of one seed drawn for each | test_clusters_are_compared_as_by_loops
    if shared or len(pairs) == 1: ==> if True:
p of one side | test_p_is_where_the_interval_ends_at_zero
    special.ndtri(p / 2) ** 2 ==> special.ndtri(p) ** 2
one start of several | test_clusters_are_compared_as_by_loops
    ours, theirs = np.mean(each, axis=1) ==> ours, theirs = each[0][0], each[1][0]
equal by chance is sure | test_seeds_that_differ_alike_by_chance_are_not_sure
    else float(alike) ==> else 0.0
what no query showed cannot be | test_of_what_was_never_seen_a_share_is_known_all_the_same
    common = (3 / ( ==> common = (0.01 / (
nothing varied and all is sure | test_paired_seeds_is_the_paired_t_test
    if spread + common else np.nan ==> if spread + common else 0.0
luck that all seeds share counts twice | test_seeds_that_differ_alike_by_chance_are_not_sure
    for gain in gains]) - common) ==> for gain in gains]))
the last half | test_what_a_curve_gains_over_its_last_quarter
    np.interp(0.75 * seen[-1] ==> np.interp(0.5 * seen[-1]
# m5lib/evaluation/evaluate.py test_embeddings.py
whitening counts the absent | test_whitening_is_fitted_on_the_products_that_have_the_modality
    append(x[output.valid[name][:, 0]]) ==> append(x)
# m5lib/evaluation/separation.py test_embeddings.py
harmony over all products | test_mean_harmony_is_over_the_products_that_have_both
    total / count.clamp(min=1) ==> total / len(rows)
similarity less its own | test_similarity_takes_off_the_mean_over_the_other_products
    (one @ other.sum(dim=0) - own) / max(1, len(one) - 1) ==> one @ other.mean(dim=0)
a look at queries | evaluation/test_evaluate.py::test_a_look_is_at_validation_products
    len(streams), np.nan)) ==> len(streams), np.nan), "query")
# m5lib/shop/listings.py shop/test_shop.py
what is asked more is trained on | test_a_shop_that_is_asked_more_trains_on_the_same_products
    "validation": "query"} ==> "validation": "query", "train": "train"}
the same merchant lists again | test_a_shop_that_is_asked_more_trains_on_the_same_products
    (merchant := next(drawn)) not in own: ==> (merchant := next(drawn)) or True:
# m5lib/lab/sweep.py lab/test_sweep.py
verdicts taken for rows | test_finished_failed_cached_retried_and_collected
    if path.name != "claims.json": ==> if True:
# m5lib/evaluation/controls.py evaluation/test_evaluate.py
idf of all products | test_controls_are_fitted_on_training_products_only
    [texts[row] for row in catalogue.split("train")] ==> texts
the weakest control | lab/test_study.py::test_the_strongest_control_stands_in_a_tables_columns
    best = max(values, ==> best = min(values,
pixels of all products | test_controls_are_fitted_on_training_products_only
    .fit(values[train]) ==> .fit(values)
# m5lib/evaluation/probes.py shop/test_shop.py
probes inside the fold | test_probes_are_no_oracle_and_no_noise
    _probe(block[train[fit]], own[fit]) ==> _probe(block[train], own)
# m5lib/explain/faithfulness.py explain/test_faithfulness.py
insertion against random deletion | test_curves_of_a_known_sum
    insertion - random[1] ==> insertion - random[0]
# m5lib/explain/attribution.py explain/test_attribution.py
error as a share of F | test_error_is_the_share_of_the_rise_that_the_scores_miss
    self.delta.abs() / (self.value - self.base).abs() ==> self.delta.abs() / self.value.abs()
# m5lib/embeddings.py test_embeddings.py
encoded reads the fused | test_model.py::test_read_outs_are_what_their_names_say
    "encoded_first": ReadOut(("encoded",) ==> "encoded_first": ReadOut(("fused",)
mean reads the first | test_model.py::test_read_outs_are_what_their_names_say
    "fused_mean": ReadOut(("fused",)) ==> "fused_mean": ReadOut(("fused",), first_token)
fused_first of unit length | test_model.py::test_read_outs_are_what_their_names_say
    first_token, unit=False ==> first_token
modalities count alike | test_model.py::test_read_outs_are_what_their_names_say
    x if weights is None else weights[name] * x ==> x
the absent count | test_an_absent_modality_adds_nothing_and_each_that_is_there_has_length_one
    = x * output.valid[name][:, :1] ==> = x
given everything | test_embeddings_given_some_modalities_know_nothing_of_the_others
    yield batch if modalities is None else batch.only(modalities) ==> yield batch
vectors with dropout | test_embeddings_given_some_modalities_know_nothing_of_the_others
    module.eval() ==> module.train()
# m5lib/model.py test_model.py
the fusion reads what it is not given | test_packed_tokens_are_what_padded_ones_are
    x & given[:, i, None] for i ==> x for i
only what is given is computed | test_packed_tokens_are_what_padded_ones_are
    packed = Packed(torch.cat(list(valid.values()), 1), seen is not None)
    ==> packed = Packed(torch.cat(list((readable or valid).values()), 1), seen is not None)
# m5lib/layers.py test_model.py
nothing to read is ones | test_packed_tokens_are_what_padded_ones_are
    torch.cat([x, x.new_zeros( ==> torch.cat([x, x.new_ones(
a gradient in another's place | test_packed_tokens_are_what_padded_ones_are
    ctx.save_for_backward(back, index) ==> ctx.save_for_backward(back.flip(0), index)
padding of a row is read | test_packed_tokens_are_what_padded_ones_are
    there = (self.cells.back < len(row)) ==> there = (self.cells.back >= 0)
# m5lib/streams.py test_streams.py
summaries over the padded length | test_features_are_hidden_from_the_summary_too
    there.sum(1).clamp(min=1) ==> there.shape[1]
any word pieces at all | data/test_columns.py::test_pieces_of_another_tokenizer_are_not_read
    != vocabulary_of(tokenizer) ==> is None
# m5lib/data/columns/__init__.py data/test_columns.py
a shard anywhere | test_no_shard_is_read_outside_of_the_folder
    [inside(folder, name) for ==> [folder / name for
a shard of another size | test_one_clear_error
    path.stat().st_size != size ==> False
the fingerprint of all | test_a_part_of_it_is_what_a_part_was
    if whole else None ==> if True else None
# m5lib/models/pretrained.py models/test_pretrained.py
decay upside down | test_what_was_pretrained_learns_at_its_own_rate
    decay ** (len(places) - 1 - n) ==> decay**n
positions of padding | test_every_family_and_its_positions
    [bert.offset :] ==> [0:]
no type in titles | test_a_title_is_what_bert_makes_of_it_in_every_row
    position + kind if ours.kind is None ==> position if ours.kind is None
four heads for twelve | test_a_job_that_asks_for_other_sizes_says_so
    Block(config.num_attention_heads, ==> Block(4,
layers left random | test_layers_and_positions_that_bert_has_not
    max(first, bert.layers), mend) ==> bert.layers, mend)
any word pieces | test_streams_with_other_word_pieces_are_refused
    if theirs != ours:
        has = f"BERT ==> if False:
        has = f"BERT
weights by place | test_a_run_is_named_by_the_weights_not_by_where_they_lie
    "".join(map(checksum, files)) ==> str(folder)
# m5lib/pretrain.py test_kills.py
history opened anew | test_killed_twice_at_any_write_it_ends_as_if_left_alone
    open(path, "a") as log: ==> open(path, "w") as log:
checkpoint before its lines | test_killed_twice_at_any_write_it_ends_as_if_left_alone
    log.flush()  # the ==> pass  # the
history not cut | test_killed_twice_at_any_write_it_ends_as_if_left_alone
    if lines[steps:]: ==> if False:
# m5lib/pretrain.py test_pretrain.py
hides is ignored | test_what_a_row_hides_is_hidden
    rate, hides, tasks, ==> rate, {}, tasks,
norms decay | test_matrices_decay_and_nothing_else
    if p.ndim > 1 and name ==> if p.ndim < 2 and name
no clipping | test_gradients_are_clipped
    nn.utils.clip_grad_norm_(model.parameters(), training.clip) ==> pass
masks repeat | test_an_epoch_is_every_product_once_in_training_mode_with_masks_of_its_own
    training.seed * 1_000_003 + step ==> training.seed * 1_000_003
queries teach by default | test_by_default_only_training_products_teach
    catalogue.split("train") if rows is None ==> np.arange(len(catalogue)) if rows is None
never in training mode | test_an_epoch_is_every_product_once_in_training_mode_with_masks_of_its_own
    model.train() ==> model.eval()
the first skipped | test_an_epoch_is_every_product_once_in_training_mode_with_masks_of_its_own
    max(0, len(rows) - 2)) : (place ==> max(0, len(rows) - 2)) + 1 : (place
one rate for all steps | test_each_step_is_taken_at_the_scheduled_rate
    group["peak"] * share ==> group["peak"]
frozen is slow | models/test_pretrained.py::test_frozen_means_frozen_and_the_rest_trains
    p.requires_grad and rate > 0 ==> p.requires_grad
one rate for all | models/test_pretrained.py::test_what_was_pretrained_learns_at_its_own_rate
    rate = next(own, training.learning_rate) ==> rate = training.learning_rate
one mask rate for all rows | test_a_row_masks_at_its_own_rate
    objective.mask_rate, dict( ==> 0.15, dict(
gradients add up | test_a_killed_run_resumes_to_the_same_losses_and_weights
    optimizer.zero_grad(set_to_none=True) ==> pass
one order | test_an_epoch_is_every_product_once_in_training_mode_with_masks_of_its_own
    default_rng([training.seed, epoch]) ==> default_rng([training.seed, 0])
one slow write counts for good | test_a_checkpoint_costs_less_than_a_hundredth_of_the_time
    apart and max(apart, 100 ==> apart and max(pause, 100
a checkpoint at once | test_a_checkpoint_costs_less_than_a_hundredth_of_the_time
    apart and max(apart, 100 * (saved - begun)) ==> apart
# m5lib/models/parallel.py models/test_parallel.py
loaders change dropout | test_pretrain.py::test_loaders_make_the_batches_of_a_run
    generator=torch.Generator() ==> generator=None
every part pulled as the first | test_micro_batches_have_the_gradient_of_the_whole
    pull[first + cut[0] : first + cut[1]] ==> pull[: cut[1] - cut[0]]
means of a process | test_two_processes_have_the_gradient_of_one
    self._sum(numbers * counted) ==> numbers * counted
dropout anew in the second pass | test_dropout_is_that_of_the_part_in_both_passes
    SeedSequence((seed, self.rank, cut[0])) ==> SeedSequence()
# m5lib/data/store.py data/test_store.py
two at one shard | test_a_shard_that_another_is_at_is_left_to_it
    if not mine: ==> if False:
# m5lib/models/finetune.py models/test_finetune.py
queries are learned from | test_queries_teach_nothing
    for row in rows if numbers ==> for row in [*rows, *catalogue.split("query")] if numbers
no dropout in the head | test_the_head_drops_out_in_training_only
    self.out(self.dropout(hidden)) ==> self.out(hidden)
# m5lib/objectives.py test_objectives.py
mean over pairs nobody has | test_a_pair_that_no_product_has_does_not_count
    _mean(means, there.sum()) ==> means.mean()
# m5lib/simcl.py test_simcl.py
one direction of a score | test_a_pairs_score_is_the_mean_of_both_directions
    (scores[:, first, second] + scores[:, second, first]).T / 2 ==> scores[:, first, second].T
short vectors are not of unit length | test_how_long_the_vectors_are_says_nothing
    return F.normalize(at_least_float32(vectors), dim=-1)
    ==> return F.normalize(at_least_float32(vectors), dim=-1, eps=1e-3)
# m5lib/masking.py test_streams.py
every 16th place keeps its look | test_any_place_of_a_long_stream_can_be_hidden
    torch.where(chosen, hidden, stream.tokens)
    ==> torch.where(chosen & (torch.arange(chosen.shape[1]) % 16 != 15), hidden, stream.tokens)
summaries give it away | test_features_are_hidden_from_the_summary_too
    tokens=with_summary(left, stream.valid) ==> tokens=left
# m5lib/search/across.py search/test_search.py
who lacks something wins | test_who_lacks_something_does_not_win_by_it
    scale[group] = slope, middle[usual] - slope * middle[group] ==> pass
few products stretch far | test_the_ways_are_what_their_table_says
    (sizes[g] * x + FEW * mean) / (sizes[g] + FEW) ==> x
the largest that cannot ask | test_the_scale_is_that_of_products_that_can_ask
    (full[group] > 0, sizes[group]) ==> sizes[group]
# m5lib/search/index.py search/test_search.py
a product finds itself | test_a_product_that_asks_with_all_it_has_finds_itself
    rank(*sides, top, own, ids[rows], rows=rows) ==> rank(*sides, top, rows=rows)
the gallery knows more | test_the_ways_are_what_their_table_says
    given = self.encoder.embed(self.streams, rows, names) ==> pass
lengths weigh in both | test_the_ways_are_what_their_table_says
    np.hstack([unit(vectors[readout]) for ==> np.hstack([vectors[readout] for
"""


class Mutant(NamedTuple):
    """One fault. ``why`` it cannot be seen, where no test kills it."""

    name: str
    file: str
    test: str
    old: str
    new: str
    why: str = ""


def mutants() -> list[Mutant]:
    """:data:`MUTANTS`, read."""
    result, entry = [], re.compile(r"^(\S.*) \| (\S+)\n((?: +.*\n)+)", re.M)
    for part in MUTANTS.split("\n# ")[1:]:
        file, tests = part.splitlines()[0].split()
        for name, test, change in entry.findall(f"{part}\n"):
            test = test if "::" in test else f"{tests}::{test}"
            texts = (text.strip() for text in re.split("==>|why:", change))
            result.append(Mutant(name, file, f"tests/{test}", *texts))
    return result


def mutated(mutant: Mutant, root: Path = ROOT) -> str:
    """The file with the fault. Raises ``ValueError`` where the old text is not there once."""
    text = (root / mutant.file).read_text(encoding="utf-8")
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {mutant.old!r} {count} times, not once")
    return text.replace(mutant.old, mutant.new)


def green(copy: Path, tests: list[str]) -> bool:
    """Whether the tests pass in a copy. Raises ``RuntimeError`` where they could not be run."""
    log = copy / "log.txt"
    if not (child := os.fork()):
        os.chdir(copy)
        sys.path[0] = str(copy)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os._exit(sys.modules["pytest"].main(["-x", "-n0", "-pno:cacheprovider", *tests]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1):
        raise RuntimeError(f"{tests}: {log.read_text(errors='replace')[-2000:]}")
    return code == 0


def main(only: str = "") -> int:
    """Make the faults with a word in their name, by default all, in what git has (committed or
    added); rows of others stay. How many live without a reason."""
    faults, path = mutants(), Path(__file__).with_suffix(".json")
    rows = {row["name"]: row for row in json.loads(path.read_text() if path.exists() else "[]")}
    chosen = [fault for fault in faults if only in fault.name]
    said = "git describe --always --exclude=* --abbrev=12 --dirty=+".split()
    commit = subprocess.check_output(said, cwd=ROOT, text=True).strip()
    os.environ["OMP_NUM_THREADS"] = "1"
    list(map(__import__, HEAVY.split()))
    with tempfile.TemporaryDirectory() as folder:
        subprocess.check_call(["git", "checkout-index", "-a", f"--prefix={folder}/"], cwd=ROOT)
        copy = Path(folder)
        texts = [mutated(fault, copy) for fault in chosen]
        if not green(copy, sorted({fault.test for fault in chosen})):
            raise RuntimeError(f"red without any fault: {(copy / 'log.txt').read_text()[-2000:]}")
        for (name, file, test, *_, why), text in zip(chosen, texts, strict=True):
            whole = (copy / file).read_text(encoding="utf-8")
            (copy / file).write_text(text, encoding="utf-8")
            row = {"name": name, "file": file, "test": test, "killed": not green(copy, [test])}
            (copy / file).write_text(whole, encoding="utf-8")
            rows[name] = row | {"why": why, "commit": commit}
            print("killed  " if row["killed"] else "SURVIVES", name, flush=True)
            kept = [rows[fault.name] for fault in faults if fault.name in rows]
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    return sum(not rows[fault.name]["killed"] and not fault.why for fault in chosen)


if __name__ == "__main__":
    if sys.argv[1:2] not in ([], ["--only"]):
        sys.exit(__doc__)
    sys.exit(min(1, main(*sys.argv[2:])))
