"""Padding, packed neighbours and caches change nothing, for pure models and hybrids."""

from itertools import pairwise

import pytest
import torch

from models.small import ALL, make, tokens

each_model = pytest.mark.parametrize("name", sorted(ALL))
IDS = tokens(rows=3)
MASK = torch.ones_like(IDS)
MASK[0, :4] = 0  # left
MASK[1, 9:] = 0  # right
MASK[2, [0, 5, 6, 12]] = 0  # anywhere


def real(row: int, start: int = 0, stop: int = 13) -> torch.Tensor:
    return torch.arange(start, stop)[MASK[row, start:stop].bool()]


@each_model
def test_padding_changes_nothing(name):
    model = make(name)
    knows = name != "all_attention"
    out = model(IDS, attention_mask=MASK, output_uncertainty=knows, output_hidden_states=True)
    for row in range(3):
        kept = real(row)
        alone = model(IDS[row : row + 1, kept], output_uncertainty=knows, output_hidden_states=True)
        torch.testing.assert_close(out.logits[row, kept], alone.logits[0])
        for mine, its in zip(out.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(mine[row, kept], its[0])
        for mine, its in zip(out.predictive_var or (), alone.predictive_var or (), strict=True):
            assert (mine is None) == (its is None)
            if mine is not None:
                torch.testing.assert_close(mine[row, kept], its[0])


@each_model
@pytest.mark.parametrize("whole_mask", [False, True])
def test_a_padded_memory_goes_on_as_an_unpadded_one(name, whole_mask):
    """In pieces, each padded in its own way; the mask may cover the past or not."""
    model, memory = make(name), None
    for start, stop in pairwise([0, 7, 8, 13]):
        mask = MASK[:, :stop] if whole_mask else MASK[:, start:stop]
        out = model(IDS[:, start:stop], attention_mask=mask, past_key_values=memory, use_cache=True)
        memory = out.past_key_values
        for row in range(3):
            alone = model(IDS[row : row + 1, real(row, 0, stop)]).logits[0]
            kept = real(row, start, stop)
            if len(kept):
                torch.testing.assert_close(out.logits[row, kept - start], alone[-len(kept) :])


@each_model
def test_cached_equals_uncached_and_pure_memories_do_not_grow(name):
    model, memory, parts, sizes = make(name), None, [], []
    for piece in IDS.split([5, 1, 1, 6], 1):
        out = model(piece, past_key_values=memory, use_cache=True)
        memory = out.past_key_values
        parts.append(out.logits)
        sizes.append(memory.numel())
    torch.testing.assert_close(torch.cat(parts, 1), model(IDS, use_cache=False).logits)
    assert (len(set(sizes)) == 1) == (name not in ("every_second", "attention_first", "all_attention"))


BOUNDS = [0, 3, 4, 13]
POSITIONS = torch.cat([torch.arange(stop - start) for start, stop in pairwise(BOUNDS)])


@each_model
@pytest.mark.parametrize("how", ["cu_seqlens", "position_ids", "both"])
def test_packed_equals_separate(name, how):
    model, ids = make(name), IDS[:1]
    knows = name != "all_attention"
    given = {"cu_seqlens": torch.tensor(BOUNDS, dtype=torch.int32), "position_ids": POSITIONS[None]}
    given = given if how == "both" else {how: given[how]}
    out = model(ids, labels=ids, output_uncertainty=knows, **given)
    total, count = 0.0, 0
    for start, stop in pairwise(BOUNDS):
        part = ids[:, start:stop]
        alone = model(part, labels=part, output_uncertainty=knows)
        torch.testing.assert_close(out.logits[:, start:stop], alone.logits)
        for mine, its in zip(out.log_evidence or (), alone.log_evidence or (), strict=True):
            if mine is not None:
                torch.testing.assert_close(mine[:, start:stop], its)
        total, count = total + alone.loss.item() * (stop - start - 1), count + stop - start - 1
    torch.testing.assert_close(out.loss.item(), total / count)


@each_model
def test_rows_that_are_packed_and_padded(name):
    """Positions mark sequences in each of several rows, and padding stands at either end and between."""
    model = make(name)
    positions = torch.stack([POSITIONS, POSITIONS.flip(0), POSITIONS])
    positions[2, :3] += 7  # the end of something longer
    positions[1] = torch.tensor([0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 0])
    mask = torch.ones_like(IDS)
    mask[1, [0, 1, 11, 12]] = 0
    out = model(IDS, attention_mask=mask, position_ids=positions)
    spans = [(0, 0, 3), (0, 3, 4), (0, 4, 13), (1, 2, 6), (1, 6, 11), (2, 0, 3), (2, 3, 4), (2, 4, 13)]
    for row, start, stop in spans:
        alone = model(IDS[row : row + 1, start:stop]).logits[0]
        torch.testing.assert_close(out.logits[row, start:stop], alone)


def test_positions_of_padded_rows_are_not_packing():
    """Those that transformers makes of a mask: padding has position 0 or 1."""
    model = make("every_second")
    plain = model(IDS, attention_mask=MASK).logits
    for filler in (0, 1):
        positions = (MASK.cumsum(1) - 1).masked_fill(MASK == 0, filler)
        given = model(IDS, attention_mask=MASK, position_ids=positions).logits
        torch.testing.assert_close(given[MASK.bool()], plain[MASK.bool()])


@each_model
def test_labels_of_padding_do_not_count(name):
    model, total, count = make(name), 0.0, 0
    padded = model(IDS, attention_mask=MASK, labels=IDS).loss
    rows = [(0, slice(4, 13)), (1, slice(0, 9)), (2, slice(1, 5)), (2, slice(7, 12))]
    log_p = model(IDS, attention_mask=MASK).logits.log_softmax(-1)
    for row, span in rows:
        picked = log_p[row, span][:-1].gather(-1, IDS[row, span][1:, None])
        total, count = total - picked.sum(), count + len(picked)
    torch.testing.assert_close(padded, total / count)


def test_one_sequence_of_the_whole_row_is_not_packing():
    model = make("every_second")
    assert model(IDS, position_ids=torch.arange(13)[None], use_cache=True).past_key_values is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cu_seqlens": torch.tensor([0, 5, 13]), "use_cache": True}, "packed sequences with a cache"),
        ({"cu_seqlens": torch.tensor([0, 5, 12])}, "does not cover T = 13"),
        ({"attention_mask": torch.ones(1, 12)}, r"attention_mask has shape \(1, 12\); expected \[1, 13\]"),
        ({"attention_mask": torch.zeros(1, 13), "cu_seqlens": torch.tensor([0, 5, 13])}, "leaves no token"),
        ({"shift_labels": torch.ones(1, 12, dtype=torch.long)}, r"labels have shape \(1, 12\); expected \(1, 13\)"),
        ({"atention_mask": torch.ones(1, 13)}, r"given \['atention_mask'\], which it does not have"),
        ({"past_key_values": [None]}, "past_key_values is a list; expected the BeliefCache"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refused(options, said):
    with pytest.raises(ValueError, match=said):
        make("every_second")(IDS[:1], **options)


def test_memories_of_other_batches_are_refused():
    model = make("bayesian")
    memory = model(IDS[:1], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="remembers 1 sequences and 3 came"):
        model(IDS, past_key_values=memory)
    memory.batch_repeat_interleave(3)
    assert model(IDS, past_key_values=memory).logits.shape[0] == 3
    with pytest.raises(ValueError, match="remembers 2 layers; this model has 1"):
        make("bayesian", num_hidden_layers=1)(IDS, past_key_values=memory)
