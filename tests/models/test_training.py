"""Training of the model: its loss in pieces, gradient checkpointing, and the size of the public shape."""

import pytest
import torch
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from bayesmem.models import BayesMemConfig, BayesMemForCausalLM
from bayesmem.models import loss as losses
from models.small import ALL, make, tokens

NAMES = ["bayesian", "every_second"]


def gradients(model, ids, **options):
    model.train()
    model.zero_grad()
    out = model(ids, labels=ids, **options)
    out.loss.backward()
    return out, {name: p.grad.clone() for name, p in model.named_parameters()}


def saved_numbers(model, ids) -> int:
    """Numbers kept for the backward pass, counted each time."""
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: held.append(x.numel()) or x, lambda x: x):
        model(ids, labels=ids)
    return sum(held)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_in_pieces_is_the_loss(name, tied, monkeypatch):
    """Pieces of five tokens of 26, with gradients; the logits themselves are left out."""
    ids, options = tokens(), {"tie_word_embeddings": tied}
    whole, expected = gradients(make(name, fuse_loss=False, **options), ids)
    assert whole.logits.shape == (2, 13, 40)
    monkeypatch.setattr(losses, "PIECE", 5 * 40)
    fused, found = gradients(make(name, **options), ids)
    assert fused.logits is None
    torch.testing.assert_close(fused.loss, whole.loss)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)
    evaluated = make(name, **options)(ids, labels=ids)
    torch.testing.assert_close(evaluated.loss, whole.loss.detach())
    assert evaluated.logits is not None


def test_the_trainer_trains_and_evaluates(tmp_path):
    """transformers' own Trainer and its collator that packs: rows of several lengths, recomputed blocks, a loss."""
    rows = [{"input_ids": tokens(1, n, seed=n)[0].tolist()} for n in (5, 9, 3, 7, 8, 6)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=3,
        gradient_accumulation_steps=2,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    model = make("every_second", torch.float32)
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=collator)
    trainer.train()
    found = trainer.evaluate()["eval_loss"]
    alone = [model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1) for row in rows]
    picked = [x[torch.arange(len(x) - 1), row["input_ids"][1:]] for x, row in zip(alone, rows, strict=True)]
    halves = [torch.cat(picked[:3]), torch.cat(picked[3:])]  # the Trainer averages over batches
    assert found == pytest.approx(-sum(half.mean().item() for half in halves) / 2, rel=1e-4)


def test_the_loss_is_float32_and_counts_what_it_is_told():
    model, ids = make("bayesian", torch.bfloat16), tokens()
    out = model(ids, labels=ids)
    assert out.logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(out.loss, expected / 24)
    for items in (7, torch.tensor(7)):
        torch.testing.assert_close(model(ids, labels=ids, num_items_in_batch=items).loss, expected / 7)
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0
    loss, logits = model(ids, labels=ids, return_dict=False)[:2]
    assert loss == out.loss and torch.equal(logits, out.logits)


def test_liger_is_used_where_it_can_be(monkeypatch):
    """A stand-in for liger-kernel, whose own kernel needs a GPU: it is called with what it wants."""

    class Fused(torch.nn.Module):
        def forward(self, weight, hidden, targets):
            return F.cross_entropy(hidden @ weight.T, targets, ignore_index=-100, reduction="sum")

    class OnGPU(torch.Tensor):
        is_cuda = True

    hidden = torch.randn(2, 3, 4)
    targets = torch.tensor([[1, 2, -100], [0, 4, 4]])
    head = torch.nn.Linear(4, 5, bias=False)
    expected = losses.next_token_loss(hidden, head, targets, 5)
    monkeypatch.setattr(losses, "_liger", Fused)
    monkeypatch.setattr(losses, "checkpoint", None)
    torch.testing.assert_close(losses.next_token_loss(hidden.as_subclass(OnGPU), head, targets, 5), expected)


@pytest.mark.parametrize("name", ["bayesian", "gated_deltanet", "every_second", "attention_first"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing_but_memory(name, reentrant):
    ids, model = tokens(), make(name)
    plain, expected = gradients(model, ids)
    held = saved_numbers(model, ids)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    again, found = gradients(model, ids)
    torch.testing.assert_close(again.loss, plain.loss)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key)
    if not reentrant:  # the other kind saves where no hook sees it
        assert saved_numbers(model, ids) < held / 3
    with pytest.raises(ValueError, match="use_cache with gradient checkpointing"):
        model(ids, use_cache=True)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_parameter_learns(name):
    model = make(name, torch.float32)
    _, found = gradients(model, tokens())
    for key, value in found.items():
        assert value.isfinite().all() and value.abs().max() > 0, key


@pytest.mark.parametrize("design", ["gated_deltanet", "bayesian"])
def test_the_public_shape_has_358_million_parameters(design):
    """Hidden 1024, 21 layers, 4 heads of 256, expand_v 1, vocabulary 32000: counted from its parts."""
    width, layers, heads, head_dim, vocab, inner = 1024, 21, 4, 256, 32000, 2816
    mixer = {"num_heads": heads, "head_dim": head_dim, "value_dim": 256, "conv_size": 4, "design": design}
    with torch.device("meta"):
        model = BayesMemForCausalLM(
            BayesMemConfig(
                vocab_size=vocab, hidden_size=width, num_hidden_layers=layers, intermediate_size=inner, mixer=mixer
            )
        )
    matrices = 5 * width * heads * head_dim + 2 * width * heads + 3 * width * inner  # q k v g o, a b, gate up down
    small = 3 * heads * head_dim * 4 + 2 * heads + head_dim + 2 * width  # convolutions, A_log dt_bias, o_norm, norms
    retention = (width * heads + heads) * (design == "bayesian")
    expected = 2 * vocab * width + layers * (matrices + small + retention) + width
    assert sum(p.numel() for p in model.parameters()) == expected
    assert 357e6 < expected < 359e6


@pytest.mark.parametrize("name", ALL)
def test_mixed_precision_is_the_model_to_its_rounding(name):
    ids = tokens()
    models = (make(name, torch.float32, initializer_range=0.02) for _ in range(2))
    exact = gradients(next(models), ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(next(models), ids)
    assert abs(mixed[0].loss - exact[0].loss) < 0.02 * exact[0].loss
    found, wanted = (torch.cat([g.flatten() for g in grads.values()]) for _, grads in (mixed, exact))
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()
