"""The zoo as a table: for the command line, and as the Markdown of docs/designs.md."""

from dataclasses import dataclass, fields

from bayesmem.design.describe import state_words, update_lines, words
from bayesmem.design.mixture import MixtureModel
from bayesmem.design.model import DesignModel
from bayesmem.design.zoo import ZOO

HEAD = """# The zoo

Written by `bayesmem designs --markdown`; `tests/design/test_table.py` holds it to the code. Symbols are those of
[math.md](math.md): `k` key, `v` value, `q` query, `a` decay, `ρ` retention, `r` observation noise; a minus marks what
is predicted before the update. Every measured design has `s = kᵀ P⁻ k + r`, the gain `g = P⁻ k / s` and the mean
`M = M⁻ + g (v − M⁻ᵀ k)ᵀ`; the table shows what sets each apart. State sizes are numbers a head. That they are equal
to what they say is held by tests, and told with the differences of released models in [peers.md](peers.md); how to
add a design, in [extending.md](extending.md).
"""

STATE = """
## State memory

What a head carries from token to token for each sequence, in KiB, with K = V. Numbers are float32 whatever the
inputs' precision; where the precision matrix is carried (`rls`, `mesanet`) everything is float64. A full covariance is
stored whole, though symmetry would allow half. For comparison: the cache of attention, 16-bit keys and values, takes
4 K bytes a token, 512 KiB at K = 128 after 1,024 tokens.
"""
KEY_DIMS = (64, 128, 256)


@dataclass(frozen=True, slots=True)
class Summary:
    """One line of the table.

    Attributes:
        name: of the design.
        assumes: what differs from a static, fully measured memory.
        update: what sets its update apart.
        state: numbers a head carries.
        equals: what it is exactly equal to.
        source: where it was published.
        experimental: whether it is.
    """

    name: str
    assumes: str
    update: str
    state: str
    equals: str
    source: str
    experimental: bool


def summary(model: DesignModel | MixtureModel) -> Summary:
    """A design in one line."""
    state, told = state_words(model), (model.equals, model.source, model.recurrence.experimental)
    if isinstance(model, MixtureModel):
        names = " or ".join(component.name for component in model.components)
        return Summary(model.name, names, "log w = log w + log p(v)", state, *told)
    plain = {f.name: f.default for f in fields(DesignModel)}
    choices = ("prior", "transition", "process_noise", "write", "readout")
    assumes = [words(getattr(model, name)) for name in choices if getattr(model, name) != plain[name]]
    assumes += [f"covariance {model.covariance.replace('_', ' ')}"] if model.covariance not in ("full", "none") else []
    shared = ("s =", "M = M⁻", "o = Mᵀ q,", "o = Mᵀ q")
    lines = [line.text.removeprefix("so ") for line in update_lines(model)]
    apart = [line for line in lines if not line.startswith(shared) and line != "P = P⁻ − s g gᵀ"]
    if any(line.startswith("g = β k") for line in apart):
        apart.remove("P⁻ = P₀")
    return Summary(model.name, ", ".join(assumes) or "nothing more", ";  ".join(apart), state, *told)


def state_bytes(model: DesignModel | MixtureModel, key_dim: int, value_dim: int) -> int:
    """Bytes that a head carries for one sequence, given float32 or 16-bit inputs.

    Args:
        model: a design.
        key_dim: K.
        value_dim: V.
    """
    if isinstance(model, MixtureModel):
        parts = [state_bytes(component, key_dim, value_dim) for component in model.components]
        return sum(parts) + 4 * len(parts)  # a weight each
    width = 8 if "precision pass" in model.recurrence.passes else 4
    return width * model.recurrence.state_size(key_dim, value_dim).total


def state_memory() -> list[str]:
    """The lines of a table of every design's state in bytes, those of one size together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for model in ZOO.values():
        sizes = (f"{state_bytes(model, size, size) / 1024:,.4g}" for size in KEY_DIMS)
        groups.setdefault((state_words(model), *sizes), []).append(f"[`{model.name}`](#{model.name})")
    lines = [f"| designs | numbers | {' | '.join(f'K = {size}' for size in KEY_DIMS)} |", "|---|---|---|---|---|"]
    return lines + [f"| {', '.join(names)} | {' | '.join(cells)} |" for cells, names in groups.items()]


def markdown() -> str:
    """docs/designs.md: the table, the states' memory, then every design in full."""
    rows = [summary(model) for model in ZOO.values()]
    lines = [HEAD, "| design | assumes | update | state | exactly equal to |", "|---|---|---|---|---|"]
    for row in rows:
        mark = " (experimental)" if row.experimental else ""
        cells = (f"[`{row.name}`](#{row.name}){mark}", f"`{row.assumes}`", f"`{row.update}`", row.state, row.equals)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [STATE, *state_memory()]
    for model in ZOO.values():
        lines += [f"\n## {model.name}\n", f"```text\n{model}\n```"]
    return "\n".join(lines) + "\n"
