# Every objective against literal loops over positions, and against splits, weights and bounds it must respect.
# Entry points: pytest.
# The loops recompute the masks' role from the noisy tokens the model was given, not from the objective's own weights.
"""Tests of core/objectives; confidence, sums and positions have files of their own."""

from __future__ import annotations

import pytest
import torch
from core.recorder import Recorder, build, example, mean, rng
from core.stand_ins import LayerModel, UniformModel, batch_of

from hildanext.core.loss_report import autoregressive_report
from hildanext.core.types import About


def about(vocabulary: int, *special: int) -> About:
    return About(vocabulary, special, torch.device("cpu"), lambda path: UniformModel(vocabulary))


def by_loop(recorder: Recorder, weigh, block: int = 4, turn: int = 0, **options) -> float:
    """sum over positions of weigh(row, place, noisy token, clean token, learn) * smoothed nll."""
    noisy, batch, _ = recorder.asked[turn]
    logs = recorder.logits(turn, block, options.get("exclude", True)).log_softmax(-1)
    smoothing, total = options.get("smoothing", 0.0), 0.0
    for row in range(noisy.shape[0]):
        for place in range(noisy.shape[1]):
            target = int(batch.tokens[row, place])
            nll = -(1 - smoothing) * float(logs[row, place, target]) - smoothing * float(logs[row, place].mean())
            total += weigh(row, place, int(noisy[row, place]), target, bool(batch.learn[row, place])) * nll
    return total


def test_mask_and_edit_is_the_weighted_sum_over_masked_replaced_and_kept_tokens():
    model, batch = Recorder(), example()
    fields = {"t2t_weight": 2.0, "keep_weight": 0.3, "weighting": "uniform"}
    report = build("mask_and_edit", noise={"replace": 0.4, "may_draw_original": False}, **fields).loss(
        model, batch, 4, rng()
    )

    def weigh(row, place, noisy, clean, learn):
        return learn * (1.0 if noisy == model.mask_id else 2.0 if noisy != clean else 0.3)

    assert abs(float(report.total.detach()) - by_loop(model, weigh)) < 1e-5
    assert abs(float(report.total.detach()) - by_loop(model, lambda *a: weigh(*a) * (a[1] != 7))) > 1e-3
    assert float(report.normaliser) == int(batch.learn.sum())
    names = [float(report.counts[name]) for name in ("m2t", "t2t", "keep")]
    assert sum(names) == int(batch.learn.sum()) and min(names) > 0


def test_elbo_weights_are_one_over_the_rate_of_the_block():
    model, batch = Recorder(), example()
    objective = build("mask_and_edit", noise={"replace": 0.0}, keep_weight=0.0)
    (view,) = objective.views(model, batch, 4, rng())
    report = objective.loss(model, batch, 4, rng())
    rate = view.rate

    def weigh(row, place, noisy, clean, learn):
        return learn * (noisy == model.mask_id) / float(rate[row, place])

    assert abs(float(report.total.detach()) - by_loop(model, weigh)) < 1e-4
    assert abs(float(report.parts["elbo"]) - by_loop(model, weigh)) < 1e-9


@pytest.mark.parametrize(("name", "smoothing"), [("guidelines", 0.0), ("soft_ce", 0.1), ("dllm", 0.0)])
def test_the_presets_are_the_published_forms(name, smoothing):
    model, batch = Recorder(), example()
    objective = build(name)
    (view,) = objective.views(model, batch, 4, rng())
    report = objective.loss(model, batch, 4, rng())
    assert bool((view.rate == view.rate[:, :1]).all())
    extra = 1e-6 if name == "dllm" else 0.0

    def weigh(row, place, noisy, clean, learn):
        return learn * (noisy == model.mask_id) / (float(view.rate[row, 0]) + extra)

    wanted = by_loop(model, weigh, smoothing=smoothing, exclude=False)
    assert abs(float(report.total.detach()) - wanted) < 1e-4 * abs(wanted)
    assert float(report.normaliser) == (int(batch.learn.sum()) if name == "dllm" else 4 * 16)


def test_dllm_counts_a_mask_of_the_text_as_masked():
    model, batch = Recorder(), example()
    batch.tokens[1, 4] = model.mask_id
    report = build("dllm").loss(model, batch, 4, rng())
    assert bool(model.asked[0][2][1, 4])
    assert bool(torch.isfinite(report.total))


@pytest.mark.parametrize("normaliser", ["token", "masked", "document", "sequence", "position"])
def test_every_normaliser_is_the_count_it_names(normaliser):
    model, batch = Recorder(), example()
    report = build(
        "mask_and_edit", normaliser=normaliser, weighting="uniform", keep_weight=0.0, noise={"replace": 0.0}
    ).loss(model, batch, 4, rng())
    learn, masked = batch.learn, model.asked[0][0] == model.mask_id
    pieces = {
        "document": [(row, doc) for row in range(4) for doc in (0, 1)],
        "sequence": [(row, None) for row in range(4)],
    }
    shares = torch.ones(4, 16)
    for row, doc in pieces.get(normaliser, []):
        inside = learn[row] & ((batch.docs[row] == doc) | (doc is None))
        shares[row][inside] = 1 / max(int(inside.sum()), 1)
    counts = {"token": learn.sum(), "masked": masked.sum(), "document": 7, "sequence": 4, "position": 64}
    assert float(report.normaliser) == float(counts[normaliser])
    wanted = by_loop(
        model, lambda row, place, noisy, clean, ok: ok * (noisy == model.mask_id) * float(shares[row, place])
    )
    assert abs(float(report.total.detach()) - wanted) < 1e-5 * max(1, abs(wanted))


def test_soft_is_label_smoothing_over_the_vocabulary_without_mask():
    model, batch = Recorder(), example()
    report = build("soft", weighting="uniform", keep_weight=0.0, noise={"replace": 0.0}).loss(model, batch, 4, rng())
    wanted = by_loop(model, lambda row, place, noisy, clean, ok: ok * (noisy == model.mask_id), smoothing=0.1)
    assert abs(float(report.total.detach()) - wanted) < 1e-5


def test_the_side_term_adds_the_next_token_loss_at_its_rate():
    batch, model = example(), LayerModel()
    plain = build("mask_and_edit").loss(model, batch, 4, rng())
    both = build("mask_and_edit", autoregressive=0.7).loss(model, batch, 4, rng())
    side = autoregressive_report(model, batch).total / plain.normaliser
    assert abs(float((mean(both) - mean(plain) - 0.7 * side).detach())) < 1e-5


def test_autoregressive_is_cross_entropy_of_the_next_token_within_documents():
    model, batch = LayerModel(), example()
    total, count = 0.0, 0
    for row in range(4):
        for doc in batch.docs[row].unique():
            places = (batch.docs[row] == doc).nonzero()[:, 0]
            piece = batch_of(batch.tokens[row, places][None])
            states = model.body(
                piece.tokens, piece.positions(), torch.ones(1, 1, len(places), len(places)).tril().bool()
            )
            logs = (states[0] @ model.head()[:11].T).log_softmax(-1)
            for i in range(1, len(places)):
                if bool(batch.learn[row, places[i]]):
                    total, count = total - float(logs[i - 1, piece.tokens[0, i]].detach()), count + 1
    report = build("autoregressive").loss(model, batch, 1, rng())
    assert abs(float(report.total.detach()) - total) < 1e-4 and float(report.normaliser) == count


def test_reports_hold_a_count_for_every_part_and_buckets_that_add_up():
    report = build("mask_and_edit").loss(LayerModel(), example(rows=32), 4, rng())
    assert set(report.parts) == set(report.counts)
    buckets = [name for name in report.parts if name.startswith("rate_")]
    assert abs(float(sum(report.parts[name] for name in buckets) - report.parts["m2t"])) < 1e-9
    assert float(report.parts["block_4"]) == float(report.parts["m2t"])
    assert not any(value.requires_grad for value in (*report.parts.values(), *report.counts.values()))


def test_random_tokens_keep_to_the_vocabulary_given():
    model, objective = Recorder(), build("mask_and_edit", noise={"replace": 1.0}).prepare(about(8, 2, 3))
    batch = example(rows=32)
    objective.loss(model, batch, 4, rng())
    noisy = model.asked[0][0]
    changed = (noisy != batch.tokens) & (noisy != model.mask_id)
    assert set(noisy[changed].tolist()) <= {0, 1, 4, 5, 6, 7}
    assert build("autoregressive").prepare(about(8)) == build("autoregressive")
