# What every mixer keeps: it names what it stands for, and a text read in pieces is the text read at once.
# Entry points: pytest. A new mixer is found by its file; a network of one of its families stands in models/hybrids.
# Pieces end inside blocks and at their ends; what is kept has the shapes that were promised.
"""Contract of recurrent mixers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from models.hybrids import HYBRIDS, hybrid

from hildanext.models.mixer import mixers_of
from hildanext.models.runs import Runs
from hildanext.registry import build, names


@pytest.mark.parametrize("name", names("mixers"))
def test_a_text_read_in_pieces_is_the_text_read_at_once(name: str) -> None:
    mixer = build("mixers", {"type": name})
    family = next(one for one in HYBRIDS if one in mixer.families)
    _, found, module = next(iter(mixers_of(hybrid(family))))
    assert type(found) is type(mixer) and type(module).__name__ in mixer.modules and mixer.layer_types
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(0))
    kept = tuple(torch.zeros(1, *shape) for shape in mixer.shapes(module))
    with torch.no_grad():
        whole, _ = mixer.mix(module, hidden, Runs.causal(torch.zeros(1, 12, dtype=torch.long)), kept)
        begun, parts = kept, []
        for start, stop in ((0, 3), (3, 4), (4, 12)):
            place = SimpleNamespace(slot=0, start=start, size=stop - start, row=0, offset=0)
            runs = Runs.decoding([place], [4], torch.arange(start, stop)[None])
            given = tuple(torch.cat([zero, one[-1:]]) for zero, one in zip(kept, begun, strict=True))
            part, begun = mixer.mix(module, hidden[:, start:stop], runs, given)
            parts.append(part)
            assert [tuple(one.shape[1:]) for one in begun] == list(mixer.shapes(module))
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
