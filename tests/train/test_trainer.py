"""Training: it learns, and a kill at any step costs nothing."""

import os
import signal

import pytest
import torch
from torch.utils.data import Dataset

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.train import Interrupted, TrainConfig, train


class Copies(Dataset):
    """Rows that repeat their first token; ``at`` calls ``then`` when a row is fetched."""

    def __init__(self, at=None, then=None):
        self.fetched, self.at, self.then = 0, at, then

    def __len__(self):
        return 64

    def __getitem__(self, index):
        self.fetched += 1
        if self.fetched == self.at:
            self.then()
        row = torch.full((8,), index % 11)
        return {"input_ids": row, "shift_labels": row}


def model():
    torch.manual_seed(0)
    mixer = {"num_heads": 1, "head_dim": 4}
    return BayesMemForCausalLM(BayesMemConfig(vocab_size=11, hidden_size=16, intermediate_size=0, mixer=mixer))


CONFIG = TrainConfig(steps=12, batch_size=4, learning_rate=1e-2, save_every=4, log_every=1)


def test_it_learns_and_logs(tmp_path):
    result = train(model(), Copies(), CONFIG, tmp_path)
    assert [step for step, _ in result.losses] == list(range(1, 13))
    assert result.losses[-1][1] < result.losses[0][1]
    assert result.resumed_from == 0


def test_resumed_after_a_crash_is_bit_for_bit_the_same(tmp_path):
    def crash():
        raise RuntimeError("power cut")

    whole, broken = model(), model()
    losses = train(whole, Copies(), CONFIG, tmp_path / "whole").losses
    with pytest.raises(RuntimeError, match="power cut"):
        train(broken, Copies(at=27, then=crash), CONFIG, tmp_path / "broken")
    again = model()
    result = train(again, Copies(), CONFIG, tmp_path / "broken")
    assert result.resumed_from == 4
    assert result.losses == losses
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_signal_saves_before_it_stops(tmp_path):
    def ask():
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="stopped at step"):
        train(model(), Copies(at=30, then=ask), CONFIG, tmp_path)
    assert train(model(), Copies(), CONFIG, tmp_path).resumed_from in (6, 7, 8)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    train(model(), Copies(), CONFIG, tmp_path)
    (tmp_path / "checkpoint-99").mkdir()
    assert train(model(), Copies(), CONFIG, tmp_path).resumed_from == 12


def test_another_training_is_not_mixed_in(tmp_path):
    train(model(), Copies(), CONFIG, tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        train(model(), Copies(), TrainConfig(steps=13, batch_size=4), tmp_path)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="steps is 0"):
        TrainConfig(steps=0)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        TrainConfig(learning_rate=-1.0)
