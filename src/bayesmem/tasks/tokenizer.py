"""Text to tokens: bytes, byte-level BPE trained here, or a tokenizer that was saved somewhere."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

EOS = "<|endoftext|>"  # stands after every document
LEAST_VOCAB = 257  # all bytes, and the end of a document
TRAINED_ON = 2**28  # characters at most that a BPE learns from


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte of UTF-8, its id the byte's value; 256 ends a document."""
    return _wrapped(Tokenizer(models.BPE(vocab=_byte_vocab(), merges=[])))


def train_tokenizer(texts: Iterable[str], vocab_size: int, limit: int = TRAINED_ON) -> PreTrainedTokenizerFast:
    """Byte-level BPE, in which every digit is a token of its own.

    Args:
        texts: documents; the first ``limit`` characters are learned from.
        vocab_size: tokens, the 256 bytes and the document's end included.
        limit: characters.

    Raises:
        ValueError: a vocabulary below 257, or texts too few to fill it.
    """
    if vocab_size < LEAST_VOCAB:
        raise ValueError(
            f"vocab is {vocab_size}; expected at least {LEAST_VOCAB} (256 bytes and the document's end), or "
            "--tokenizer bytes."
        )
    tokenizer = _wrapped(Tokenizer(models.BPE())).backend_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_first(texts, limit), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise ValueError(
            f"vocab is {vocab_size}, but the text has only {tokenizer.get_vocab_size()} different tokens to learn; "
            "ask for fewer, or give more text."
        )
    return _wrapped(tokenizer)


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """A tokenizer saved by transformers.

    Args:
        path: its folder.

    Raises:
        ValueError: no tokenizer there, one that no library of fast tokenizers runs, or one without an end of text.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"no tokenizer at {path}; give 'bytes', 'bpe', or a folder that save_pretrained wrote.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (ValueError, OSError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder} holds no tokenizer that transformers can load: {error}") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"the tokenizer in {folder} is a slow one; expected one with a tokenizer.json.")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer in {folder} has no eos_token, which must end every document; set one.")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    """Ids of all texts, on all cores; what looks like a special token in a text is text."""
    backend = tokenizer.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        return [one.ids for one in backend.encode_batch_fast(texts, add_special_tokens=False)]
    finally:
        backend.encode_special_tokens = before


def _wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False)


def _byte_vocab() -> dict[str, int]:
    """Byte-level BPE's letters for bytes: printable ones stand for themselves, the others from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return {letters[byte]: byte for byte in range(256)} | {EOS: 256}


def _first(texts: Iterable[str], limit: int) -> Iterator[str]:
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return
