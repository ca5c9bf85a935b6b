"""A student beside its teacher: their distance in hidden states and logits, and a Trainer that minimises it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bayesmem.models import BayesMemForCausalLM
from bayesmem.train.distill_config import TERMS, DistillOptions
from bayesmem.train.flops import forward_flops
from bayesmem.train.language import LanguageTrainer
from bayesmem.train.rows import IGNORED

PIECE = 2**25  # logits held at a time, of student and teacher each: 128 MiB of float32
NEW_GATES = ("retention_", "discount_")  # which no teacher has
# Gates of what the covariance is made of, and of nothing else.
COVARIANCE_GATES = (*NEW_GATES, "process_noise_", "b_proj", "b_bias", "log_prior_var")


def is_covariance_gate(name: str) -> bool:
    """Whether a parameter of this name decides what the covariance does: retention and noises."""
    return ".gates." in name and name.split(".gates.")[1].startswith(COVARIANCE_GATES)


def choose_trained(model: nn.Module, trains: str) -> int:
    """Freeze all parameters but those that shall train, and count these.

    Args:
        model: to be trained.
        trains: as of ``DistillOptions``.

    Raises:
        ValueError: none is left.
    """
    for name, parameter in model.named_parameters():
        own = {"all": True, "mixers": ".mixer." in name, "gates": is_covariance_gate(name)}
        parameter.requires_grad_(own[trains])
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not count:
        raise ValueError(f"no parameter of this model is one of the {trains!r} that shall train; choose another.")
    return count


class Matching:
    """The loss of distillation, computed within the student's own forward.

    It is a forward hook, since what happens there is inside of what DDP and FSDP wrap. Outside of ``expecting`` it does
    nothing, so that evaluation and generation are the model's own.

    Args:
        student: is trained.
        teacher: is not; it is run in evaluation mode and without gradients.
        options: what is minimised.
        bf16: whether teacher and logits are computed under autocast, as the student is.
    """

    def __init__(
        self, student: BayesMemForCausalLM, teacher: BayesMemForCausalLM, options: DistillOptions, bf16: bool = False
    ):
        if len(student.layers) != len(teacher.layers):
            raise ValueError(f"the student has {len(student.layers)} layers, its teacher {len(teacher.layers)}.")
        if student.config.vocab_size != teacher.config.vocab_size:
            raise ValueError(
                f"the student's vocabulary has {student.config.vocab_size} tokens, its teacher's "
                f"{teacher.config.vocab_size}; their logits cannot be compared."
            )
        self.teacher, self.options, self.bf16 = teacher.eval().requires_grad_(False), options, bf16
        self.weights: dict[str, float | int] | None = None  # of this forward; None where it is no step of training
        self.targets: Tensor
        self.terms = torch.zeros(len(TERMS))  # unweighted, of this step so far
        self._expected: tuple[list[Tensor], Tensor] | None = None
        self._caught: dict[nn.Module, Tensor] | None = None  # submodules' outputs, in a forward that asks for them
        for model in (student, teacher):
            for module in (model.norm, *(_mixers(model) if options.align == "mixer" else ())):
                module.register_forward_hook(self._catch)
        student.register_forward_hook(self._hook, with_kwargs=True)

    def expecting(self, inputs: dict[str, Tensor], weights: dict[str, float | int]) -> dict[str, Any]:
        """Run the teacher; what the student is to be called with next, so that its output has the loss.

        Args:
            inputs: a batch of ``TokenRows``.
            weights: of the terms, the teacher's 0 where it need not be run.
        """
        given: dict[str, Any] = {name: x for name, x in inputs.items() if name not in ("labels", "shift_labels")}
        streams = bool(weights["align"]) and self.options.align == "stream"
        given |= {"use_cache": False, "output_hidden_states": streams, "logits_to_keep": 1}
        self.targets, self.weights, self._expected = inputs["shift_labels"], weights, None
        if weights["align"] or weights["kl"]:
            with torch.no_grad(), self._autocast():
                self._caught = {}
                out = self.teacher(**given)
                self._expected = self._states(self.teacher, out), self._caught[self.teacher.norm]
        self._caught = {}
        return given

    def _catch(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._caught is not None:
            hidden = output[0] if isinstance(output, tuple) else getattr(output, "hidden_states", output)
            self._caught[module] = hidden

    def _states(self, model: BayesMemForCausalLM, output: Any) -> list[Tensor]:
        """The hidden states that are aligned."""
        if self.options.align == "mixer":
            assert self._caught is not None
            return [self._caught[mixer] for mixer in _mixers(model)]
        return list(output.hidden_states[1:]) if output.hidden_states is not None else []

    def _hook(self, student: BayesMemForCausalLM, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if self.weights is None:
            return None
        weights, count = self.weights, kwargs.get("num_items_in_batch")
        with self._autocast():
            terms = self._sums(student, output, weights)
        self.weights = self._expected = self._caught = None
        terms = terms / ((self.targets != IGNORED).sum().clamp(min=1) if count is None else count)
        self.terms = self.terms.to(terms.device) + terms.detach()
        loss = sum(weights[name] * term for name, term in zip(TERMS, terms, strict=True) if weights[name])
        if isinstance(output, dict):
            output.loss = loss  # type: ignore[attr-defined]
            return output
        return (loss, *output)

    def _sums(self, student: BayesMemForCausalLM, output: Any, weights: dict[str, float | int]) -> Float[Tensor, "3"]:
        """Every term, summed over the tokens that have a target."""
        assert self._caught is not None
        targets = self.targets.flatten()
        states, last = (None, None) if self._expected is None else self._expected
        align = torch.zeros((), device=targets.device)
        if weights["align"] and states is not None:
            align = alignment(self._states(student, output), states, targets != IGNORED)
        flat = self._caught[student.norm].flatten(0, 1)
        wanted = None if last is None or not weights["kl"] else last.flatten(0, 1)
        size = max(1, PIECE // student.config.vocab_size)
        pieces = zip(
            flat.split(size),
            [None] * -(-len(flat) // size) if wanted is None else wanted.split(size),
            targets.split(size),
            strict=True,
        )
        heads, tau = (student.lm_head, self.teacher.lm_head), self.options.temperature
        sums = [
            checkpoint(logit_losses, heads, *piece, tau, use_reentrant=False)
            if len(flat) > size
            else logit_losses(heads, *piece, tau)
            for piece in pieces
        ]
        return torch.cat([align[None], torch.stack(sums).sum(0)])

    def _autocast(self) -> AbstractContextManager[Any]:
        device = next(self.teacher.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)


def alignment(
    student: Sequence[Float[Tensor, "B T D"]], teacher: Sequence[Float[Tensor, "B T D"]], counts: Bool[Tensor, " N"]
) -> Float[Tensor, ""]:
    """Squared distance over the teacher's own square, token by token: averaged over layers, summed over tokens.

    Args:
        student: hidden states of every layer.
        teacher: the same of the teacher.
        counts: which of the N = B T tokens count.
    """
    total = torch.zeros((), device=counts.device)
    for mine, theirs in zip(student, teacher, strict=True):
        mine, theirs = _wide(mine), _wide(theirs)
        apart = (mine - theirs).square().sum(-1) / (theirs.square().sum(-1) + 1e-6)
        total = total + torch.where(counts, apart.flatten(), 0.0).sum()
    return total / len(student)


def logit_losses(
    heads: tuple[nn.Module, nn.Module],
    student: Float[Tensor, "N D"],
    teacher: Float[Tensor, "N D"] | None,
    targets: Int[Tensor, " N"],
    temperature: float | int,
) -> Float[Tensor, "2"]:
    """KL of the teacher's prediction from the student's, times the squared temperature, and cross-entropy: sums, nats.

    Args:
        heads: to logits, of student and teacher.
        student: normed hidden states.
        teacher: the teacher's, or ``None``: KL is then 0.
        targets: -100 where a token does not count.
        temperature: divides the logits that KL compares.
    """
    logits = _wide(heads[0](student))
    entropy = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
    if teacher is None:
        return torch.stack([torch.zeros_like(entropy), entropy])
    with torch.no_grad():
        wanted = (_wide(heads[1](teacher)) / temperature).log_softmax(-1)
    apart = F.kl_div((logits / temperature).log_softmax(-1), wanted, log_target=True, reduction="none").sum(-1)
    return torch.stack([temperature**2 * torch.where(targets != IGNORED, apart, 0.0).sum(), entropy])


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mixers(model: BayesMemForCausalLM) -> list[Any]:
    return [block.mixer for block in model.layers]


class DistillTrainer(LanguageTrainer):
    """The language Trainer, its loss that of a distillation.

    Args:
        teacher: to learn from.
        options: how.
        kwargs: as of ``LanguageTrainer``.
    """

    def __init__(self, *, teacher: BayesMemForCausalLM, options: DistillOptions, **kwargs: Any):
        super().__init__(**kwargs)
        self.options = options
        self.matching = Matching(self.model, teacher.to(self.args.device), options, bf16=self.args.bf16)
        steps = self.args.max_steps
        taught = forward_flops(teacher, self.train_dataset.length)
        self.token_flops += taught * options.mix.teacher_steps(steps) / steps
        self._terms_of = -1

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, the new gates at a learning rate of their own; a control has none of them."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.options.gate_rate == 1:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        gates = {p for name, p in named if ".gates." in name and name.split(".gates.")[1].startswith(NEW_GATES)}
        for group in list(optimizer.param_groups):
            own = [p for p in group["params"] if p in gates]
            if own:
                group["params"] = [p for p in group["params"] if p not in gates]
                optimizer.add_param_group(group | {"params": own, "lr": group["lr"] * self.options.gate_rate})
        return optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mix of this step; the teacher is run first, where it has a part in it."""
        if self._terms_of != self.state.global_step:  # the first part of a step's batch
            self._terms_of = self.state.global_step
            self.matching.terms = torch.zeros_like(self.matching.terms)
        weights = self.options.mix.at(self.state.global_step / self.args.max_steps)
        given = self.matching.expecting(inputs, weights)
        return super().compute_loss(model, given, return_outputs, num_items_in_batch=num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the terms of the last step, unweighted; one without a weight is not told."""
        if "loss" in logs:
            terms = self.accelerator.reduce(self.matching.terms.to(self.args.device), "sum").tolist()
            weights = self.options.mix.at((self.state.global_step - 1) / self.args.max_steps)
            logs |= {name: term for name, term in zip(TERMS, terms, strict=True) if weights[name] or name == "ce"}
        super().log(logs, start_time)
