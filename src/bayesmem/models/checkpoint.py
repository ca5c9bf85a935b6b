"""What a folder of weights holds, told before anything is loaded; damage is refused by the tensor's name."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
MEND = "The file is damaged or was cut short: copy or write it again"


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint.

    Attributes:
        file: that holds it.
        dtype: in safetensors' letters, such as ``F32``.
        shape: of the tensor.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]


def read_checkpoint(folder: str | Path) -> dict[str, Stored]:
    """Every tensor of a folder's safetensors files, by their headers alone.

    Args:
        folder: holds ``model.safetensors``, or its parts and their index.

    Raises:
        ValueError: no safetensors, or a damaged or truncated file; the first tensor that is hurt is named.
    """
    folder = Path(folder)
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)
    if not index.is_file():
        raise ValueError(_none_there(folder))
    try:
        places: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is no index of safetensors ({error!r}). {MEND}.") from error
    found: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            lost = next(tensor for tensor, place in places.items() if place == name)
            raise ValueError(f"{lost} should be in {folder / name}, which is not there; copy all parts of the index.")
        found |= read_header(folder / name)
    for tensor, place in places.items():
        if tensor not in found or found[tensor].file.name != place:
            raise ValueError(f"{tensor} is not in {folder / place}, where {INDEX} has it. {MEND}.")
    return {tensor: found[tensor] for tensor in places}


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of one safetensors file.

    Raises:
        ValueError: a damaged or truncated file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path} has {size} bytes, less than its header, so that no tensor can be read. {MEND}.")
        text = file.read(length)
    try:
        header: dict[str, dict[str, object]] = json.loads(text)
        header.pop("__metadata__", None)
        entries = [(name, _entry(path, name, one)) for name, one in header.items()]
    except (ValueError, AttributeError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(
            f"{path} has a header that is not JSON ({error}), so that no tensor can be read. {MEND}."
        ) from error
    end = 0
    for name, (_, start, stop) in sorted(entries, key=lambda entry: entry[1][1:]):
        if start != end:
            raise ValueError(f"{path}: {name} starts at byte {start}; expected {end}. {MEND}.")
        if 8 + length + stop > size:
            short = 8 + length + stop - size
            raise ValueError(f"{path}: {name} ends {short} bytes after the file does. {MEND}.")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"{path} has {size - 8 - length - end} bytes after its last tensor. {MEND}.")
    return {name: stored for name, (stored, _, _) in entries}


def check_checkpoint(
    stored: Mapping[str, Stored], expected: Mapping[str, tuple[int, ...]], *, shapes: bool = True
) -> None:
    """Refuse tensors that are missing, unexpected, of the wrong shape, or no floating-point numbers.

    Args:
        stored: ``read_checkpoint``'s.
        expected: shape of every tensor of the model.
        shapes: whether shapes must fit.

    Raises:
        ValueError: the first few that do not fit, named.
    """
    where = next(iter(stored.values())).file.parent if stored else "the checkpoint"
    wrong = [f"{name} is missing" for name in expected if name not in stored]
    wrong += [f"{name} is not of this model" for name in stored if name not in expected]
    for name, one in stored.items():
        if name not in expected:
            continue
        if one.dtype not in WIDTHS:
            wrong.append(f"{name} is {one.dtype}, expected floating-point numbers")
        elif shapes and one.shape != tuple(expected[name]):
            wrong.append(f"{name} has shape {one.shape}, expected {tuple(expected[name])}")
    if wrong:
        rest = f", and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{where} does not fit its model: {'; '.join(wrong[:5])}{rest}. Is config.json that of these weights?"
        )


def check_finite(stored: Mapping[str, Stored]) -> None:
    """Read all values and refuse NaN and infinity, by the tensor's name.

    Raises:
        ValueError: a tensor that holds one.
    """
    for path in sorted({one.file for one in stored.values()}):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                values = file.get_tensor(name)
                bad = int((~torch.isfinite(values.float())).sum())
                if bad:
                    raise ValueError(f"{path}: {name} holds {bad} of {values.numel()} values that are NaN or infinite.")


def _entry(path: Path, name: str, one: Mapping[str, object]) -> tuple[Stored, int, int]:
    dtype, shape, offsets = one.get("dtype"), one.get("shape"), one.get("data_offsets")
    if dtype not in WIDTHS | OTHERS:
        raise ValueError(f"{path}: {name} has dtype {dtype!r}; expected one of {', '.join(WIDTHS | OTHERS)}. {MEND}.")
    whole = isinstance(shape, list) and all(isinstance(n, int) and n >= 0 for n in shape)
    if not whole or not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"{path}: {name} has shape {shape!r} and data_offsets {offsets!r}. {MEND}.")
    assert isinstance(shape, list) and isinstance(dtype, str)
    need = math.prod(shape) * (WIDTHS | OTHERS)[dtype]
    if offsets[1] - offsets[0] != need:
        raise ValueError(f"{path}: {name} takes {offsets[1] - offsets[0]} bytes; {dtype} {shape} needs {need}. {MEND}.")
    return Stored(path, dtype, tuple(shape)), offsets[0], offsets[1]


def _none_there(folder: Path) -> str:
    there = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"))
    if there:
        return (
            f"{folder} holds {', '.join(there)} and no {SINGLE}; only safetensors are read, since other formats can "
            "run code. Write it again with a safetensors library (save_file of safetensors.torch)."
        )
    return f"{folder} holds neither {SINGLE} nor {INDEX}; expected a folder that save_pretrained wrote."
