"""Text to train retrieval on: needles in a haystack and questions about them, in the words of RULER's S-NIAH.

What training and test share is the wording of needle, question and answer. What they do not: RULER's keys are pairs of
an adjective and a noun from the package wonderwords, these are pairs of made-up words; its values are numbers of seven
digits or UUIDs, these are numbers of four to ten digits, made-up words or UUIDs, all drawn anew, so that no document of
the test can have been seen; its noise is five sentences that stand in none of these, unless asked for; its texts are
the user's, who should give others here. One document asks for several needles here, in S-NIAH for one.
"""

import json
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from bayesmem.tasks.haystack import sentences

RULER_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NOISE = (
    "The rain came down on the roofs. A cart went by in the lane. Nobody looked up from the table. The clock struck "
    "again. It was late in the year. The dog slept by the door. They talked of the weather. The road was long. He "
    "closed the book. The lamp burned low. A bird called from the hedge. The kettle began to sing. She counted the "
    "stairs. The river ran high. Some time went by. The shop was shut."
)
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
LETTERS_A_TOKEN = 4.0  # a first guess; every document is then measured


@dataclass(frozen=True, slots=True)
class RetrievalConfig:
    """What the documents are like.

    Attributes:
        tokens: of all documents together, at least.
        shortest: tokens of the shortest documents.
        longest: tokens of the longest; lengths are drawn between, evenly in their logarithm.
        needles: of a document at most; as many as drawn are hidden, and all are asked for, in another order.
        kinds: of the values: ``numbers``, ``words``, ``uuids``; one kind a document.
        book_share: of documents whose haystack is the given text; the others' is noise.
        ruler_noise: noise of RULER's own five sentences, in place of ours.
        seed: of everything.

    Raises:
        ValueError: numbers out of their bounds, or unknown kinds.
    """

    tokens: int
    shortest: int = 128
    longest: int = 1024
    needles: int = 4
    kinds: tuple[str, ...] = ("numbers", "words", "uuids")
    book_share: float = 0.5
    ruler_noise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("tokens", "needles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not 1 <= self.shortest <= self.longest:
            raise ValueError(f"lengths from {self.shortest} to {self.longest}; expected the shortest first, from 1 on.")
        if not 0 <= self.book_share <= 1:
            raise ValueError(f"book_share is {self.book_share}; expected a share within [0, 1].")
        if not self.kinds or set(self.kinds) - {"numbers", "words", "uuids"}:
            raise ValueError(f"kinds is {self.kinds}; expected some of numbers, words, uuids.")


def tokens_for_share(others: int, share: float) -> int:
    """Tokens of retrieval text that make up a share of all, beside ``others`` tokens of other text.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; expected one within [0, 1).")
    return round(others * share / (1 - share))


def documents(config: RetrievalConfig, tokenizer: PreTrainedTokenizerBase, text: str = "") -> Iterator[tuple[str, int]]:
    """Documents and their numbers of tokens, the same for the same config, tokenizer and text.

    Args:
        config: what they are like.
        tokenizer: that lengths are counted by.
        text: haystack of the share that is no noise, taken from anywhere in it.

    Raises:
        ValueError: a text is wanted and too short.
    """
    book = sentences(" ".join(text.split()))
    if config.book_share and sum(map(len, book)) < 2 * LETTERS_A_TOKEN * config.longest:
        raise ValueError(
            f"the haystack has {len(text)} letters, less than two documents of {config.longest} tokens take; give more "
            "text, or book_share 0."
        )
    rng, done = random.Random(f"retrieval {config.seed}"), 0
    rates = {True: LETTERS_A_TOKEN, False: LETTERS_A_TOKEN}
    while done < config.tokens:
        length = round(config.shortest * (config.longest / config.shortest) ** rng.random())
        from_book = rng.random() < config.book_share
        filler = book if from_book else _noise(rng, config.ruler_noise)
        document, count = _document(rng, config, filler, from_book, length, rates[from_book], tokenizer)
        rates[from_book] += 0.2 * (len(document) / count - rates[from_book])
        done += count
        yield document, count


def write(path: Path, config: RetrievalConfig, tokenizer: PreTrainedTokenizerBase, text: str = "") -> tuple[int, int]:
    """Write documents as JSON lines, which ``bayesmem train`` reads beside other files; it mixes by itself.

    Its rows are cut from one stream of all files and drawn from anywhere in it, so that the share of a file in
    training is its share of the tokens: ``tokens_for_share`` says how many to write.

    Returns:
        Documents and tokens written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished, count, tokens = path.with_name(f"{path.name}.writing"), 0, 0
    with unfinished.open("w", encoding="utf-8") as file:
        for document, size in documents(config, tokenizer, text):
            file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
            count, tokens = count + 1, tokens + size
    unfinished.replace(path)
    return count, tokens


def _document(
    rng: random.Random,
    config: RetrievalConfig,
    filler: Sequence[str],
    from_book: bool,
    length: int,
    rate: float,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[str, int]:
    kind = rng.choice(config.kinds)
    count = rng.randint(1, config.needles)
    pairs = {_key(rng): _value(rng, kind) for _ in range(count)}
    start = rng.randrange(len(filler)) if from_book else 0
    places = [rng.random() for _ in pairs]
    asked = rng.sample(list(pairs), len(pairs))
    letters = rate * length
    letters -= len(_written(pairs, asked, places, kind, []))
    best: tuple[str, int] | None = None
    for _ in range(4):  # letters a token differ by text: measure, and correct
        text = _written(pairs, asked, places, kind, _filled(filler, start, letters))
        size = len(tokenizer(text).input_ids)
        if size <= length and (best is None or size > best[1]):
            best = text, size
        if 0.9 * length <= size <= length:
            break
        letters += 0.97 * rate * (length - size) - (size > length)
    if best is not None:
        return best
    while True:  # no room for so many: fewer, and no more text than there must be
        asked = [key for key in asked if key in pairs]
        text = _written(pairs, asked, places, kind, _filled(filler, start, 1.0))
        size = len(tokenizer(text).input_ids)
        if size <= length or len(pairs) == 1:
            return text, size
        pairs.popitem()


def _written(
    pairs: dict[str, str], asked: Sequence[str], places: Sequence[float], kind: str, filler: Sequence[str]
) -> str:
    one = kind[:-1]
    hidden = [
        (place, f"One of the special magic {kind} for {key} is: {pairs[key]}.")
        for key, place in zip(pairs, places, strict=False)
    ]
    body = list(filler)
    for place, needle in sorted(hidden, reverse=True):
        body.insert(round(place * len(filler)), needle)
    answers = [
        f"What is the special magic {one} for {key} mentioned in the provided text? The special magic {one} for {key} "
        f"mentioned in the provided text is: {pairs[key]}."
        for key in asked
    ]
    opening = (
        f"A special magic {one} is hidden within the following text. Make sure to memorize it. I will quiz you about "
        f"the {one} afterwards."
    )
    return "\n".join([opening, " ".join(body), *answers])


def _filled(filler: Sequence[str], start: int, letters: float) -> list[str]:
    found, held, place = [], 0, start
    while held < letters:
        found.append(filler[place % len(filler)])
        held += len(found[-1]) + 1
        place += 1
    return found


def _noise(rng: random.Random, of_ruler: bool) -> list[str]:
    pool = sentences(RULER_NOISE if of_ruler else NOISE)
    return pool if of_ruler else rng.sample(pool, 5)


def _key(rng: random.Random) -> str:
    return f"{_word(rng)}-{_word(rng)}"


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(SYLLABLES, k=rng.randint(2, 4)))


def _value(rng: random.Random, kind: str) -> str:
    if kind == "numbers":
        digits = rng.randint(4, 10)
        return str(rng.randrange(10 ** (digits - 1), 10**digits))
    return _key(rng) if kind == "words" else str(uuid.UUID(int=rng.getrandbits(128), version=4))
