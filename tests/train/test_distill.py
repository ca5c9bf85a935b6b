"""The loss of a distillation: its terms, its schedule, what it trains."""

import pytest
import torch
from torch.nn import functional as F

from bayesmem.models import BayesMemForCausalLM
from bayesmem.models.opening import start
from bayesmem.models.plan import ConversionOptions
from bayesmem.train import DistillOptions, DistillTrainer, Mix, arguments, choose_trained, distill, flops
from bayesmem.train.distill_config import read_knots
from train.small import config
from train.small_distill import teacher

WEIGHTS = {"align": 0.5, "kl": 2.0, "ce": 0.25}


@pytest.fixture
def models(tmp_path):
    found = start(teacher(tmp_path), ConversionOptions(retention=0.5))
    return {name: found.build(name) for name in ("teacher", "student", "control")}


def test_documents_that_are_strangers_are_told_apart(models):
    """Packed rows: the same terms as of the documents by themselves."""
    student, own = models["student"].double(), models["teacher"].double()
    whole = batch()
    whole["shift_labels"][:, 5] = -100
    parts = [{name: x[:, cut] for name, x in whole.items()} for cut in (slice(0, 6), slice(6, 12))]
    counts = torch.tensor([(part["shift_labels"] != -100).sum() for part in parts])
    places = torch.arange(12).remainder(6).expand(2, 12)
    for align in ("stream", "mixer"):
        terms = []
        for inputs in (*parts, whole | {"position_ids": places}):
            matching = distill.Matching(student, own, DistillOptions(align=align))
            student(**matching.expecting(inputs, WEIGHTS))
            terms.append(matching.terms)
        torch.testing.assert_close(terms[2], (terms[0] * counts[0] + terms[1] * counts[1]) / counts.sum())


def batch(seed=1):
    tokens = torch.randint(0, 257, (2, 13), generator=torch.Generator().manual_seed(seed))
    targets = tokens[:, 1:].clone()
    targets[0, 3:5] = -100
    return {"input_ids": tokens[:, :-1], "labels": targets, "shift_labels": targets}


def test_weights_are_linear_between_knots():
    mix = Mix(align=((0.0, 1.0), (0.5, 0.0)), kl=((0.2, 1.0),), ce=((0.5, 0.0), (1.0, 2.0)))
    assert mix.at(0) == {"align": 1, "kl": 1, "ce": 0}
    assert mix.at(0.25) == {"align": 0.5, "kl": 1, "ce": 0}
    assert mix.at(0.75) == {"align": 0, "kl": 1, "ce": 1}
    assert mix.at(1) == {"align": 0, "kl": 1, "ce": 2}
    gone = Mix(align=((0.0, 1.0), (0.5, 0.0)), kl=((0.0, 0.0),))
    assert gone.teacher_steps(10) == 5 and mix.teacher_steps(10) == 10
    assert read_knots("x", "0:1,.5:0") == ((0.0, 1.0), (0.5, 0.0)) and read_knots("x", "2") == ((0.0, 2.0),)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mix(kl=((0.5, 1.0), (0.2, 1.0))), r"kl has knots at \[0.5, 0.2\]; expected rising shares"),
        (lambda: Mix(kl=((0.0, -1.0),)), r"kl has weights \[-1.0\]; expected 0 or more"),
        (lambda: Mix(align=((0, 0),), kl=((0, 1), (0.5, 0)), ce=((0, 0),)), "at 0.5 of the budget no loss has a"),
        (lambda: DistillOptions(align="logits"), "align is 'logits'; expected one of stream, mixer"),
        (lambda: DistillOptions(trains="heads"), "trains is 'heads'; expected one of gates, mixers, all"),
        (lambda: DistillOptions(temperature=0), "temperature is 0; expected a positive"),
        (lambda: DistillOptions.of({"speed": 1}), "unknown options speed"),
        (lambda: DistillOptions.of({"mix": {"mse": [[0, 1]]}}), "unknown losses mse"),
        (lambda: read_knots("--kl-weight", "1:2:3"), "--kl-weight is '1:2:3'; expected a weight, such as 1, or"),
    ],
)
def test_bad_options_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("align", ["stream", "mixer"])
@pytest.mark.parametrize("piece", [distill.PIECE, 257 * 5])
def test_the_loss_is_its_terms(models, align, piece, monkeypatch):
    monkeypatch.setattr(distill, "PIECE", piece)
    student, own, tau = models["student"].double(), models["teacher"].double(), 2.0
    inputs = batch()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    ids, counts = inputs["input_ids"], inputs["shift_labels"] != -100
    caught = {}
    hooks = [
        block.mixer.register_forward_hook(lambda m, a, out, key=(k, i): caught.__setitem__(key, out.hidden_states))
        for k, model in (("s", student), ("t", own))
        for i, block in enumerate(model.layers)
    ]
    s, t = (model(ids, output_hidden_states=True) for model in (student, own))
    for hook in hooks:
        hook.remove()
    pairs = list(zip(s.hidden_states[1:], t.hidden_states[1:], strict=True))
    if align == "mixer":
        pairs = [(caught["s", i], caught["t", i]) for i in range(2)]
    apart = [((a - b).square().sum(-1) / (b.square().sum(-1) + 1e-6))[counts].mean() for a, b in pairs]
    p, q = ((x.logits / tau).log_softmax(-1) for x in (t, s))
    kl = tau**2 * (p.exp() * (p - q)).sum(-1)[counts].mean()
    ce = F.cross_entropy(s.logits[counts], inputs["shift_labels"][counts])
    expected = 0.5 * sum(apart) / len(apart) + 2 * kl + 0.25 * ce
    wanted = torch.autograd.grad(expected, list(student.parameters()), retain_graph=False)

    matching = distill.Matching(student, own, DistillOptions(align=align, temperature=tau))
    given = matching.expecting(inputs, WEIGHTS)
    out = student.train()(**given)
    torch.testing.assert_close(out.loss, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        matching.terms, torch.stack([sum(apart) / len(apart), kl, ce]).detach(), rtol=1e-9, atol=0
    )
    out.loss.backward()
    for parameter, gradient in zip(student.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-7, atol=1e-10)
    assert all(p.grad is None for p in own.parameters())
    plain = student.eval()(ids, labels=ids)  # outside of a step nothing is different
    assert plain.logits.shape == (2, 12, 257) and plain.hidden_states is None
    matching.expecting(inputs, WEIGHTS)
    summed = student(**given, num_items_in_batch=1).loss
    torch.testing.assert_close(summed, expected * counts.sum(), rtol=1e-9, atol=0)


def test_a_control_begins_as_its_teacher_and_a_student_close_by(models):
    terms = {}
    for name in ("control", "student"):
        matching = distill.Matching(models[name], models["teacher"], DistillOptions())
        models[name](**matching.expecting(batch(), WEIGHTS))
        terms[name] = matching.terms
    assert terms["control"][:2].tolist() == [0, 0]
    assert 0 < terms["student"][0] < 0.1 and 0 < terms["student"][1] < 0.1


def test_the_teacher_is_not_run_where_it_has_no_weight(models, monkeypatch):
    matching = distill.Matching(models["student"], models["teacher"], DistillOptions())
    monkeypatch.setattr(models["teacher"], "forward", None)
    out = models["student"](**matching.expecting(batch(), {"align": 0, "kl": 0, "ce": 2}))
    assert out.loss == 2 * matching.terms[2] and matching.terms[:2].tolist() == [0, 0]


def test_models_that_do_not_fit_are_refused(models, tmp_path):
    for options, said in (({"vocab_size": 300}, "300.*257; their logits"), ({"num_hidden_layers": 3}, "3 layers.* 2")):
        (tmp_path / said[:3]).mkdir()
        other = start(teacher(tmp_path / said[:3], **options)).build("student")
        with pytest.raises(ValueError, match=said):
            distill.Matching(other, models["teacher"], DistillOptions())


def test_what_trains(models):
    student, control = models["student"], models["control"]
    assert choose_trained(student, "all") == student.num_parameters()
    assert choose_trained(student, "gates") == 2 * (16 + 16 + 1)  # b_proj; retention_proj and its bias
    assert choose_trained(control, "gates") == 2 * 16
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {f"layers.{i}.mixer.gates.{x}" for i in (0, 1) for x in GATES}
    choose_trained(student, "mixers")
    trained = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in student.named_parameters() if ".mixer." in name}
    every = flops.training_flops(student, 16)
    frozen = sum(p.numel() for n, p in student.named_parameters() if not p.requires_grad and "embed" not in n)
    choose_trained(student, "all")
    assert flops.training_flops(student, 16) - every == 2 * frozen
    assert flops.forward_flops(student, 16) == pytest.approx(flops.training_flops(student, 16) / 3)
    soft = BayesMemForCausalLM(
        type(student.config)(num_hidden_layers=1, attention_every=1, mixer={"num_heads": 1, "head_dim": 4})
    )
    with pytest.raises(ValueError, match="no parameter of this model is one of the 'gates'"):
        choose_trained(soft, "gates")


GATES = ("b_proj.weight", "retention_proj.weight", "retention_bias")


def test_gates_have_a_rate_of_their_own(models, tmp_path):
    run = config(tmp_path, learning_rate=1e-2, held_out=())
    trainer = DistillTrainer(
        teacher=models["teacher"], options=DistillOptions(gate_rate=10), model=models["student"],
        args=arguments(run, tmp_path), train_dataset=Rows(), tokens_per_byte=1.0, step_tokens=64, token_flops=1.0,
        peak=None, tokenizer=None,
    )  # fmt: skip
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in models["student"].named_parameters():
        assert rates[id(parameter)] == (0.1 if ".gates.retention_" in name else 0.01), name
        assert decays[id(parameter)] == (0 if ".gates." in name or "norm" in name or "conv1d" in name else 0.1), name
    taught = flops.forward_flops(models["teacher"], 16)
    assert trainer.token_flops == 1 + taught


class Rows(list):
    length = 16
