"""What decides when MQAR is learned: initialisation, tied embeddings, the gate, the mean's decay, the optimiser.

Small enough for a CPU core, and large enough in the vocabulary to show what the full size shows: a loss that stays at
ln(vocab / 2), any value, until the look-up is found. A run ends once its loss, averaged over some ten steps, is below
.1; runs that have a record are passed over: ``python benchmarks/mqar_initialisation.py --study start --seeds 0 1``.
"""

import argparse
import itertools
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bayesmem.experiments.common import build
from bayesmem.models import BayesMemForCausalLM
from bayesmem.report.records import Records
from bayesmem.tasks import mqar

Options = dict[str, Any]
RECORDS = Path(__file__).parent / "records/mqar_initialisation.jsonl"
WIDTH, HEAD_DIM, ROWS, BETA2, CLIP = 64, 32, 20_000, 0.999, 1.0
LEVELS = (6.0, 3.0, 1.0, 0.1)  # losses whose first step is recorded
TRAINING: Options = {"learning_rate": 3e-3, "batch_size": 64, "warmup": 100, "weight_decay": 0.1}
DATA: Options = {"vocab_size": 2048, "segments": [[32, 4], [32, 8]]}
LINEAR: Options = {"initializer_range": None, "embedding_range": 0.02}  # torch's linear layers
TIED: Options = {"tie_word_embeddings": True}
GOOD: Options = TIED | LINEAR
FULL: Options = {"vocab_size": 8192}
BOTH = ("gated_deltanet", "bayesian")
FIXED = ("bayesian_static", "bayesian_prior_mixing")  # their mean does not decay
LONGER: Options = {"segments": [[64, 4], [64, 16]]}


def without_gate(cases: dict[str, Options]) -> dict[str, Options]:
    """The same cases, nothing gating what the memory answers."""
    return {f"{name}, no output gate": case | {"output_gate": "none"} for name, case in cases.items()}


# A case: options of the model, its mixer, of training and data, together; each goes where its name belongs.
RATES, DECAYS = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2), {"Mamba-2": None, ".99": 0.99, ".999": 0.999}
STARTS: dict[str, Options] = {"present": {}, "tied": TIED, "torch linear": LINEAR, "tied, torch linear": GOOD}
WIDER = {f"tied, torch linear, embeddings {x}": GOOD | {"embedding_range": y} for x, y in (("1/8", 0.125), ("1", 1.0))}
LARGE = {f"8192, {x}": y | FULL for x, y in STARTS.items()}
GOOD_RATES = {f"learning rate {x}": GOOD | {"learning_rate": x} for x in RATES}
DECAYING = {
    f"{x}, decay {name}": {**GOOD, **LONGER, "design": x, "decay_init": kept}
    for x, (name, kept) in itertools.product(("gated_deltanet", "bayesian_forgetting"), DECAYS.items())
} | {"deltanet, no decay": GOOD | LONGER}
SLOW = {f"{x}, decay .999": {**GOOD, "design": x, "decay_init": 0.999} for x in ("bayesian_static", *BOTH)}
STUDIES: dict[str, dict[str, Options]] = {
    "start": STARTS | WIDER | {"torch linear, embeddings 1": LINEAR | {"embedding_range": 1.0}},
    "around": {
        "no output gate": GOOD | {"output_gate": "none"},
        "sigmoid output gate": GOOD | {"output_gate": "sigmoid"},
        "o_proj a tenth": GOOD | {"scale_o_proj": 0.1},
        "convolutions near identity": GOOD | {"identity_conv": True},
        "embeddings without weight decay": GOOD | {"decay_embeddings": False},
        "no warmup": GOOD | {"warmup": 0},
    },
    "rates": GOOD_RATES | {f"present, learning rate {x}": {"learning_rate": x} for x in RATES},
    "designs": {x: {**GOOD, "design": x} for x in (*FIXED, *BOTH, "bayesian_forgetting")},
    "decay": DECAYING,
    "retention": {
        f"{x}, retention {kept}": {**GOOD, "design": x, "retention_init": kept, "decay_init": 0.999}
        for x, kept in itertools.product(("bayesian_prior_mixing", "bayesian"), (0.9, 0.999, 0.9999))
    },
    "full vocabulary": LARGE
    | {f"8192, {x}, learning rate 0.001": STARTS[x] | FULL | {"learning_rate": 1e-3} for x in ("present", "tied")},
    "start, no gate": without_gate(STARTS | WIDER),
    "rates, no gate": without_gate(GOOD_RATES),
    "decay, no gate": without_gate(DECAYING),
    "full vocabulary, no gate": without_gate(LARGE),
    "designs, no gate": without_gate(SLOW),
}
MIXER: Options = {"design": "deltanet", "output_gate": "silu", "decay_init": None}
TOUCHES: Options = {"scale_o_proj": 1.0, "identity_conv": False, "decay_embeddings": True}
MODEL: Options = {"initializer_range": 0.02, "embedding_range": None, "tie_word_embeddings": False}


def made(settings: Options) -> BayesMemForCausalLM:
    """The model of these settings."""
    options = {x: settings[x] for x in ("vocab_size", *MODEL)} | {"hidden_size": WIDTH, "intermediate_size": 0}
    mixer = {x: settings[x] for x in (*MIXER, "retention_init") if x in settings}
    mixer |= {"num_heads": 1, "head_dim": HEAD_DIM}
    model = build(settings["seed"], mixer=mixer, **options)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("o_proj.weight"):
                weight.mul_(settings["scale_o_proj"])
            if settings["identity_conv"] and name.endswith("conv1d.weight"):
                weight.mul_(0.04)[:, -1] += 1
    return model


def learn(settings: Options) -> Options:
    """Train until the loss is below the last level, or the steps are over."""
    model = made(settings)
    data = []
    for i, (length, pairs) in enumerate(settings["segments"]):
        made_of = mqar.MQARConfig(settings["vocab_size"], length, pairs, ROWS)
        batch = mqar.make(made_of, 77 + i + 100 * settings["seed"])
        data.append((torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)))
    tables = {model.embed_tokens.weight, model.lm_head.weight}
    matrices = {m.weight for m in model.layers.modules() if isinstance(m, nn.Linear)}
    rest, decayed = [p for p in model.parameters() if p not in tables | matrices], settings["weight_decay"]
    decays = (decayed * settings["decay_embeddings"], decayed, 0.0)
    groups = [{"params": list(p), "weight_decay": w} for p, w in zip((tables, matrices, rest), decays, strict=True)]
    optimiser = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, BETA2))
    drawn, began = torch.Generator().manual_seed(settings["seed"]), time.perf_counter()
    smooth, losses, reached = math.log(settings["vocab_size"]), [], dict.fromkeys(LEVELS)
    for step in range(1, settings["steps"] + 1):
        for group in optimiser.param_groups:
            group["lr"] = settings["learning_rate"] * min(1.0, step / max(1, settings["warmup"]))
        inputs, targets = data[int(torch.randint(len(data), (1,), generator=drawn))]  # a batch is of one segment
        rows = torch.randint(ROWS, (settings["batch_size"],), generator=drawn)
        asked = targets[rows] != mqar.IGNORED
        stream = model.embed_tokens(inputs[rows])
        for block in model.layers:
            stream = block(stream)[0]
        loss = F.cross_entropy(model.lm_head(model.norm(stream)[asked]), targets[rows][asked])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        smooth += 0.1 * (loss.item() - smooth)
        losses += [[step, round(smooth, 4)]] if step % 25 == 0 else []
        reached = {level: at or (step if smooth < level else None) for level, at in reached.items()}
        if reached[LEVELS[-1]] or not math.isfinite(smooth):
            break
    seconds, first = round(time.perf_counter() - began, 1), [[level, at] for level, at in reached.items()]
    return {"first_step_below": first, "steps": step, "loss": smooth, "losses": losses, "seconds": seconds}


def main() -> None:
    """Run one study's cases, each seed in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", choices=STUDIES, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cases", nargs="+", help="only these of the studies' cases")
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = Records(RECORDS)
    for seed, study in itertools.product(options.seeds, options.study):
        for name, case in STUDIES[study].items():
            settings = MODEL | MIXER | TOUCHES | TRAINING | DATA | case | {"steps": options.steps, "seed": seed}
            if options.cases and name not in options.cases:
                continue
            if records.find("mqar_initialisation", name, settings) is None:
                figures = learn(settings)
                records.add("mqar_initialisation", name, settings, figures)
                print(f"{name}, seed {seed}:", figures["first_step_below"], f"{figures['loss']:.2f}", flush=True)


if __name__ == "__main__":
    main()
