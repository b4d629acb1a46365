# The presets of mask_and_edit: which defaults each changes, and that a preset is checked like any other setting.
# Entry points: pytest.
# What the presets compute is in test_objectives.py.
"""Tests of the presets."""

from __future__ import annotations

import pytest
from core.recorder import build
from pydantic import ValidationError

from hildanext import registry
from hildanext.core.objectives.mask_and_edit import MaskAndEdit
from hildanext.errors import ConfigError

ROW = {"unit": "sequence", "replace": 0.0}
GUIDELINES = {"noise": ROW, "keep_weight": 0.0, "normaliser": "position", "exclude_mask": False}
CHANGED = {
    "soft": {"smoothing": 0.1},
    "confidence": {"confidence": 2.0},
    "guidelines": GUIDELINES,
    "soft_ce": {**GUIDELINES, "smoothing": 0.1},
    "dllm": {"noise": ROW, "keep_weight": 0.0, "exclude_mask": False},
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_preset_is_mask_and_edit_with_its_own_defaults(name):
    wanted = build("mask_and_edit", **CHANGED[name])
    assert build(name).model_dump() == wanted.model_dump()
    assert isinstance(build(name), MaskAndEdit)


@pytest.mark.parametrize("name", CHANGED)
def test_a_presets_fields_are_set_and_checked_like_any_other(name):
    assert build(name, smoothing=0.3, keep_weight=0.7).model_dump() == {
        **build(name).model_dump(), "smoothing": 0.3, "keep_weight": 0.7,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="smoothing: input should be less than 1"):
        build(name, smoothing=1.5)


def test_presets_leave_the_defaults_of_the_class_they_are_made_of():
    before = MaskAndEdit().model_dump()
    type("Loud", (MaskAndEdit,), {}, smoothing=0.4)
    assert MaskAndEdit().model_dump() == before and MaskAndEdit().smoothing == 0.0


def test_a_preset_of_a_field_that_is_not_there_or_out_of_range_is_refused():
    with pytest.raises(ValueError, match="no field smothing"):
        type("Typo", (MaskAndEdit,), {}, smothing=0.1)
    with pytest.raises(ValidationError, match="less than 1"):
        type("Wild", (MaskAndEdit,), {}, smoothing=7.0)()


def test_an_objective_of_ones_own_may_add_a_field_that_must_be_given():
    made = type("Mine", (MaskAndEdit,), {"__annotations__": {"path": str}, "__module__": __name__}, keep_weight=0.0)
    assert made(path="x").keep_weight == 0.0
    with pytest.raises(ValidationError, match="path"):
        made()


@pytest.mark.parametrize(("old", "new"), [("masked_weight", "m2t_weight"), ("edit_weight", "t2t_weight")])
@pytest.mark.parametrize("name", ["mask_and_edit", "multi_turn", *CHANGED])
def test_a_former_weight_is_an_unknown_key_that_names_the_present_one(name, old, new):
    with pytest.raises(ConfigError, match=f"{old}: unknown key, did you mean '{new}'"):
        registry.build("objectives", {"type": name, old: 0.5})
