"""A design in words and equations: the text of ``print(model)`` and its LaTeX. Held by golden files."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from bayesmem.design import assumptions as a

if TYPE_CHECKING:
    from bayesmem.design.mixture import MixtureModel
    from bayesmem.design.model import DesignModel


@dataclass(frozen=True, slots=True)
class Line:
    """One step of an update: what it does, in characters and in LaTeX."""

    label: str
    text: str
    latex: str


def update_lines(m: DesignModel) -> list[Line]:
    """The recurrence of a design, step by step. One head; symbols as in docs/math.md."""
    if m.covariance == "none":
        return _additive(m)
    assert isinstance(m.write, a.Measurement)
    plain = m.write.per_token == 1 and m.write.dof is None
    if isinstance(m.process_noise, a.LogLinearMixing) and m.covariance == "full" and plain:
        return [*_log_linear(), *_read_out(m)]
    return [*_predict(m), *_update(m, m.write), *_read_out(m)]


def as_text(m: DesignModel) -> str:
    """Assumptions, update, inputs, state and claims, for a terminal."""
    r = m.recurrence
    assumed = ("prior", "transition", "process_noise", "write", "covariance", "readout")
    rows = [("assumes", f"{name.replace('_', ' '):14}{words(getattr(m, name))}") for name in assumed]
    rows += [("update", f"{line.label:14}{line.text}") for line in update_lines(m)]
    if fixed := _fixed(m):
        rows.append(("update", f"{'with':14}{', '.join(fixed)}"))
    inputs = [f"{x.symbol:3} {x.name} [{', '.join(x.axes.split())}], {x.meaning}" for x in r.inputs]
    rows += [("inputs", line) for line in inputs or ["none besides q, k, v"]]
    passes = ", then ".join(r.passes)
    rows += [("passes", passes + (f" (gain rule: {r.gain_rule.replace('_', ' ')})" if r.gain_rule else ""))]
    rows += [("state", f"{state_words(m)} numbers a head"), ("exactness", r.exact)]
    rows += [("equals", m.equals)] if m.equals else []
    rows += [("source", m.source)] if m.source else []
    rows += [("status", "experimental")] if r.experimental else []
    return "\n".join([m.name, *_aligned(rows)])


def as_latex(m: DesignModel) -> str:
    """The update as an ``aligned`` block."""
    lines = [rf"  \text{{{line.label}}} \quad & {line.latex}" for line in update_lines(m)]
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"


def mixture_text(m: MixtureModel) -> str:
    """Components, weights and claims, for a terminal."""
    weights = "log w = " + ("" if m.evidence_kept == 1 else f"{m.evidence_kept:g} ") + "log w + log p(v | component)"
    names = [component.name for component in m.components]
    needed = [f"{x.symbol:3} {x.name} [{', '.join(x.axes.split())}], {x.meaning}" for x in m.recurrence.inputs]
    rows = [("assumes", f"one of {', '.join(names)}; nobody knows which")]
    rows += [("update", "each component by itself"), ("update", f"{weights}, normalised"), ("update", "o = Σ w o_j")]
    rows += [("inputs", line) for line in needed]
    rows += [("state", f"{state_words(m)} numbers a head")]
    rows += [("exactness", m.recurrence.exact)]
    rows += [("equals", m.equals)] if m.equals else []
    rows += [("source", m.source)] if m.source else []
    return "\n".join([m.name, *_aligned([*rows, ("status", "experimental")])])


def mixture_latex(m: MixtureModel) -> str:
    """The weights' update as an ``aligned`` block."""
    kept = "" if m.evidence_kept == 1 else f"{m.evidence_kept:g} "
    return (
        "\\begin{aligned}\n"
        rf"  \text{{weigh}} \quad & \log w_j \leftarrow {kept}\log w_j + \log p_j(v) \text{{, normalised}} \\"
        "\n"
        r"  \text{read out} \quad & o = \textstyle\sum_j w_j M_j^\top q"
        "\n\\end{aligned}"
    )


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    """Rows under their headings, each heading once."""
    lines, last = [], ""
    for heading, row in rows:
        lines.append(f"  {heading if heading != last else '':11}{row}".rstrip())
        last = heading
    return lines


def words(choice: object) -> str:
    """A choice as it would be written, its defaults left out."""
    if isinstance(choice, str):
        return choice
    given = [f for f in fields(choice) if getattr(choice, f.name) != f.default]  # type: ignore[arg-type]
    return f"{type(choice).__name__}({', '.join(f'{f.name}={getattr(choice, f.name)!r}' for f in given)})"


def state_words(m: DesignModel | MixtureModel) -> str:
    """Numbers a head carries, in symbols."""
    if not hasattr(m, "covariance"):
        return " + ".join(state_words(c) for c in m.components) + f" + {len(m.components)}"
    return {"full": "K V + K²", "diagonal": "K V + K", "isotropic": "K V + 1"}.get(m.covariance, "K V")


def _fixed(m: DesignModel) -> list[str]:
    """Quantities that the design fixes to a number other than the plain 1."""
    noise, write, found = m.process_noise, m.write, []

    def add(symbol: str, value: object, plain: float | int | None = None) -> None:
        if not isinstance(value, str) and value != plain:
            found.append(f"{symbol} = {value:g}")

    if isinstance(m.transition, a.Decay):
        add("a", m.transition.factor)
    if isinstance(noise, a.PriorMixing):
        add("ρ", noise.retention)
    if isinstance(noise, a.Additive):
        add("n", noise.variance)
    if isinstance(noise, a.Discount | a.LogLinearMixing):
        add("γ", noise.factor)
    if isinstance(write, a.Measurement):
        add("r", write.obs_noise)
        if write.dof is not None:
            found.append(f"ν = {write.dof:g}")
    else:
        add("b", write.strength, 1)
    if m.covariance != "none":
        add("p₀", m.prior.var, 1)
    return found


def _additive(m: DesignModel) -> list[Line]:
    if isinstance(m.write, a.Measurement):
        mixed = isinstance(m.process_noise, a.LogLinearMixing)
        gamma, latex = ("γ ", r"\gamma ") if mixed else ("", "")
        return [
            Line("write", f"η = {gamma}η + k vᵀ / r", rf"\eta \leftarrow {latex}\eta + k v^\top / r"),
            Line("read out", "o = ηᵀ q", r"o = \eta^\top q"),
        ]
    factor, latex = _factor(m)
    key, key_latex = ("(1 − a)", "(1 - a) ") if m.write.key == "complement" else ("k", "k ")
    strength = "" if m.write.strength == 1 else "b "
    return [
        Line("write", f"M = {factor}M + {strength}{key} vᵀ", rf"M \leftarrow {latex}M + {strength}{key_latex}v^\top"),
        Line("read out", "o = Mᵀ q", r"o = M^\top q"),
    ]


def _factor(m: DesignModel) -> tuple[str, str]:
    if isinstance(m.transition, a.Identity):
        return "", ""
    return ("diag(a) ", r"\mathrm{diag}(a) ") if m.transition.per == "channel" else ("a ", "a ")


def _log_linear() -> list[Line]:
    return [
        Line(
            "predict",
            "H⁻ = γ H + (1 − γ) P₀⁻¹,  η⁻ = γ η",
            r"H^- = \gamma H + (1 - \gamma) P_0^{-1}, \quad \eta^- = \gamma \eta",
        ),
        Line(
            "update",
            "H = H⁻ + k kᵀ / r,  η = η⁻ + k vᵀ / r",
            r"H = H^- + k k^\top / r, \quad \eta = \eta^- + k v^\top / r",
        ),
        Line("", "P = H⁻¹,  M = P η", r"P = H^{-1}, \quad M = P \eta"),
    ]


def _predict(m: DesignModel) -> list[Line]:
    factor, factor_latex = _factor(m)
    noise, structure = m.process_noise, m.covariance
    mean = Line("predict", f"M⁻ = {factor}M", rf"M^- = {factor_latex}M")
    if isinstance(noise, a.LogLinearMixing):  # a reduced structure: the mean decays as its variance is pulled
        mean = Line("predict", "M⁻ = γ P⁻ inv(P) M", r"M^- = \gamma P^- P^{-1} M")
    if structure == "reset":
        return [mean, Line("", "P⁻ = P₀", r"P^- = P_0")]
    if structure == "steady_state":
        fixed = "p the fixed point of p⁺ = p − p² / (K (p + r)),  p = ρ² p⁺ + (1 − ρ²) p₀"
        latex = r"P^- = p I, \quad p = \rho^2 \left( p - \tfrac{p^2}{K (p + r)} \right) + (1 - \rho^2) p_0"
        return [mean, Line("", f"P⁻ = p I, {fixed}", latex)]
    return [mean, _predict_cov(m, factor, factor_latex)]


def _predict_cov(m: DesignModel, factor: str, factor_latex: str) -> Line:
    noise = m.process_noise
    if m.covariance == "isotropic" and not isinstance(noise, a.Discount | a.LogLinearMixing):
        return _predict_isotropic(m)
    if isinstance(noise, a.Discount | a.LogLinearMixing):
        log_linear = isinstance(noise, a.LogLinearMixing)
        floor = "" if log_linear else f"{noise.floor:g} "  # type: ignore[union-attr]
        if not log_linear and noise.floor == 0:  # type: ignore[union-attr]
            return Line("", "P⁻ = P / γ", r"P^- = P / \gamma")
        text = f"(P⁻)⁻¹ = γ P⁻¹ + (1 − γ) {floor}P₀⁻¹".replace("(P⁻)⁻¹", "inv(P⁻)").replace("γ P⁻¹", "γ inv(P)")
        return Line("", text, rf"(P^-)^{{-1}} = \gamma P^{{-1}} + (1 - \gamma) {floor}P_0^{{-1}}")
    if isinstance(noise, a.PriorMixing):
        tied = noise.retention == "decay"
        per = m.transition.per if tied and isinstance(m.transition, a.Decay) else noise.per
        name, latex = ("a", "a") if tied else ("ρ", r"\rho")
        if per == "channel":
            text = f"P⁻ = diag({name}) P diag({name}) + diag(1 − {name}²) P₀"
            diag = rf"\mathrm{{diag}}({latex})"
            return Line("", text, rf"P^- = {diag} P {diag} + \mathrm{{diag}}(1 - {latex}^2) P_0")
        return Line("", f"P⁻ = {name}² P + (1 − {name}²) P₀", rf"P^- = {latex}^2 P + (1 - {latex}^2) P_0")
    added, added_latex = "", ""
    if isinstance(noise, a.Additive):
        added, added_latex = (" + diag(n)", r" + \mathrm{diag}(n)") if noise.per == "channel" else (" + n I", " + n I")
    if factor == "a ":
        return Line("", f"P⁻ = a² P{added}", f"P^- = a^2 P{added_latex}")
    return Line(
        "",
        f"P⁻ = {factor}P{' ' + factor.strip() if factor else ''}{added}",
        f"P^- = {factor_latex}P {factor_latex}".rstrip() + added_latex,
    )


def _predict_isotropic(m: DesignModel) -> Line:
    """One variance: what is given for each channel is averaged."""
    noise, transition = m.process_noise, m.transition
    decay = isinstance(transition, a.Decay)
    channels = decay and transition.per == "channel"  # type: ignore[union-attr]
    if isinstance(noise, a.PriorMixing):
        name, latex = ("a", "a") if noise.retention == "decay" else ("ρ", r"\rho")
        channels = channels if noise.retention == "decay" else noise.per == "channel"
        kept, kept_latex = (f"mean({name}²)", rf"\overline{{{latex}^2}}") if channels else (f"{name}²", f"{latex}^2")
        return Line(
            "",
            f"P⁻ = p⁻ I,  p⁻ = {kept} p + (1 − {kept}) p₀",
            rf"P^- = p^- I, \quad p^- = {kept_latex} p + (1 - {kept_latex}) p_0",
        )
    kept, kept_latex = ("mean(a²) ", r"\overline{a^2} ") if channels else ("a² ", "a^2 ") if decay else ("", "")
    added, added_latex = "", ""
    if isinstance(noise, a.Additive):
        added, added_latex = (" + mean(n)", r" + \overline{n}") if noise.per == "channel" else (" + n", " + n")
    return Line("", f"P⁻ = p⁻ I,  p⁻ = {kept}p{added}", rf"P^- = p^- I, \quad p^- = {kept_latex}p{added_latex}")


def _update(m: DesignModel, write: a.Measurement) -> list[Line]:
    each = f"each of {write.per_token}" if write.per_token > 1 else ""
    noise = "r" if write.dof is None else "r / w"
    lines = []
    if write.dof is not None:
        lines.append(
            Line(
                "weigh",
                "w = (ν + V) / (ν + E|v − Sᵀ k|² / r), in 20 sweeps",
                r"w = \frac{\nu + V}{\nu + E \lvert v - S^\top k \rvert^2 / r} \text{ (20 sweeps)}",
            )
        )
    lines.append(
        Line(
            each or "update",
            f"s = kᵀ P⁻ k + {noise},  g = P⁻ k / s,  e = v − M⁻ᵀ k",
            rf"s = k^\top P^- k + {noise}, \quad g = P^- k / s, \quad e = v - (M^-)^\top k",
        )
    )
    lines.append(Line("", "M = M⁻ + g eᵀ", r"M = M^- + g e^\top"))
    after = {
        "full": ("P = P⁻ − s g gᵀ", r"P = P^- - s g g^\top"),
        "diagonal": (
            f"P = diag(p),  1 / p = 1 / p⁻ + k² / ({noise}) for each channel".replace("(r)", "r"),
            rf"P = \mathrm{{diag}}(p), \quad 1 / p = 1 / p^- + k^2 / ({noise})".replace("(r)", "r"),
        ),
        "isotropic": (
            "P = p I,  p = p⁻ − (p⁻)² |k|² / (K s)",
            r"P = p I, \quad p = p^- - (p^-)^2 \lvert k \rvert^2 / (K s)",
        ),
    }
    if m.covariance in after:
        lines.append(Line("", *after[m.covariance]))
    elif m.covariance == "reset":
        if write.dof is not None:
            pass  # the gain has no shorter form
        elif write.unit_keys and m.prior == a.Prior():
            lines.append(
                Line(
                    "",
                    "so g = β k, β = 1 / (1 + r), for unit keys",
                    r"g = \beta k, \quad \beta = 1 / (1 + r) \text{ for unit keys}",
                )
            )
        elif m.prior == a.Prior():
            lines.append(Line("", "so g = k / (|k|² + r)", r"g = k / (\lvert k \rvert^2 + r)"))
    return lines


def _read_out(m: DesignModel) -> list[Line]:
    if isinstance(m.readout, a.PrecisionWeighted):
        return [Line("read out", "o = Mᵀ q · r / (r + qᵀ P q)", r"o = M^\top q \cdot r / (r + q^\top P q)")]
    if isinstance(m.readout, a.Expected):
        f = m.readout.function
        return [
            Line(
                "read out",
                f"o = E[{f}(y)],  y ~ N(Mᵀ q, qᵀ P q)",
                rf"o = E[\mathrm{{{f}}}(y)], \quad y \sim N(M^\top q, q^\top P q)",
            )
        ]
    return [Line("read out", "o = Mᵀ q,  var = qᵀ P q", r"o = M^\top q, \quad \mathrm{var} = q^\top P q")]
