"""One job of the language study; alone in a process, ``python -m bayesmem.experiments.language_job OUT < settings``."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from bayesmem.experiments.common import build
from bayesmem.experiments.eval_checkpoint import Checkpoint
from bayesmem.experiments.eval_text import TextConfig, measure
from bayesmem.experiments.job_process import beside, locked, serve
from bayesmem.experiments.language_config import EXPERIMENT, Job
from bayesmem.experiments.language_models import BASE, fitted
from bayesmem.experiments.pretrain import streams_of
from bayesmem.models import BayesMemForCausalLM
from bayesmem.report.records import records_in
from bayesmem.tasks.prepared import Prepared, open_prepared
from bayesmem.tasks.tokenizer import load_tokenizer
from bayesmem.train import Diverged, arguments, train_language
from bayesmem.train.checkpoints import check_fingerprint

TOKENIZER, PREPARED = "tokenizer", "prepared.txt"  # in the study's folder: what the queue puts there for its jobs
AT_ONCE = 2**15  # tokens that are tested side by side


def run(job: Job, out: Path) -> None:
    """Train and test, then append the record; nothing is done where it is there already.

    Raises:
        ValueError: the tokens are of other texts than the job's.
        Interrupted: a signal came; a checkpoint was written first.
    """
    if records_in(out).find(EXPERIMENT, job.model, job.settings):
        return
    place, tokenizer = out / "jobs" / job.folder, load_tokenizer(out / TOKENIZER)
    prepared = Path((out / PREPARED).read_text())
    train, held = (open_prepared(prepared, name, job.text[name]) for name in ("train", "held_out"))
    place.mkdir(parents=True, exist_ok=True)
    check_fingerprint(place, job.settings)
    model = build(job.seed, vocab_size=len(tokenizer), **job.options)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    figures = sizes(model, job) | {"beside": beside(), "vocab_size": len(tokenizer)}
    args = arguments(job.run, place)
    try:
        result = train_language(
            model, tokenizer, streams_of(job.run, train, held, args), job.run, args, title=job.folder
        )
    except Diverged as error:
        figures |= {"diverged": str(error)}
    else:
        figures |= {
            "steps": job.run.steps,
            "seconds": round(result.training.seconds, 2),
            "resumed_from": result.training.resumed_from,
            "losses": [[step, float(f"{loss:.5g}")] for step, loss in result.training.losses],
            "choice": result.evaluations[-1]["eval_bits_per_byte"],
        }
        figures |= tested(model.eval(), job, held, tokenizer)
    with locked(out / "records.lock"):
        records_in(out).add(EXPERIMENT, job.model, job.settings, figures)
    shutil.rmtree(place, ignore_errors=True)


def sizes(model: BayesMemForCausalLM, job: Job) -> dict[str, Any]:
    """What the model was fitted to, and how near it came."""
    own, base = fitted(job.model, job.shape, job.matched), fitted(BASE, job.shape)
    return {
        "parameters": model.num_parameters(),
        "parameters_per_layer": own.parameters,
        "parameters_of_base": own.parameters / base.parameters,
        "state_per_layer": own.state,
        "state_of_base": own.state / base.state,
        "head": [own.head_dim, own.value_dim],
        "intermediate_size": own.intermediate_size,
    }


def tested(model: BayesMemForCausalLM, job: Job, held: Prepared, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Bits per byte of the held-out text in contexts of the trained length, and by position in longer ones."""
    recipe, checkpoint = job.recipe, Checkpoint(job.folder, "", model, tokenizer)

    def at(length: int) -> dict[str, Any]:
        config = TextConfig(
            (), length, recipe.evaluate_tokens, max(1, AT_ONCE // length), piece=recipe.length, bf16=recipe.bf16
        )
        return measure(config, checkpoint, held_texts(held, tokenizer, recipe.choice_tokens))

    near, far = at(recipe.length), at(recipe.length * recipe.reach)
    return {
        "bits_per_byte": near["bits_per_byte"],
        "perplexity": near["perplexity"],
        "tested_tokens": near["tokens"],
        "tested_bytes": near["bytes"],
        "bins": far["bins"],
        "test_seconds": round(near["seconds"] + far["seconds"], 2),
    }


def held_texts(held: Prepared, tokenizer: PreTrainedTokenizerFast, skip: int = 0) -> Iterator[str]:
    """Documents of a prepared corpus, as text again: where it was prepared, its files may be somewhere else.

    Args:
        held: the corpus.
        tokenizer: of its tokens.
        skip: leave out so many tokens at the start; a document may then begin in the middle.
    """
    ends = [*held.starts[1:].tolist(), len(held.tokens)]
    for start, end in zip(held.starts.tolist(), ends, strict=True):
        ids = held.tokens[max(start, skip) : end - 1].tolist()  # the last one ends the document
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if text := text.lstrip("\ufffd"):  # half a letter, where the cut parted it
            yield text


if __name__ == "__main__":
    serve(Job.of, run)
