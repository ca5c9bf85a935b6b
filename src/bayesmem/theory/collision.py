"""Two associations under unit keys at cosine c: a written first, then b; what is recalled, and its spread.

Every rule's recall is linear in the values, so each prediction is two weights and a noise gain
(``Retrieval``), from which the mean, the variance and, since the noise is Gaussian, exact bands follow.
All of it is exact (docs/math.md section 6). The query may point anywhere: it enters only through its
overlap ``u = (k_a . q, k_b . q)`` with the two keys, by default that of the first key, ``(1, c)``.
"""

from dataclasses import dataclass

import numpy as np

from bayesmem.theory.domains import Floats, Numbers, checked

Overlap = tuple[Numbers, Numbers]


@dataclass(frozen=True, slots=True)
class Retrieval:
    """A recall that is linear in two values, each written several times under fresh noise.

    Attributes:
        weight_a: coefficient of the first association's clean value in the expected recall.
        weight_b: coefficient of the second's.
        noise_gain: variance of the recall for noise of variance 1.
    """

    weight_a: Floats
    weight_b: Floats
    noise_gain: Floats

    def mean(self, value_a: Numbers, value_b: Numbers) -> Floats:
        """Expected recall of a channel whose clean values are ``value_a`` and ``value_b``."""
        a, b = checked(value_a=value_a, value_b=value_b)
        return self.weight_a * a + self.weight_b * b

    def variance(self, noise_var: Numbers) -> Floats:
        """Variance of one recalled channel over the values' noise, of variance ``noise_var``.

        Channels are independent and Gaussian: a 95% band of one recall is the mean plus or minus
        1.96 square roots of this, of an average over R recalls that over the square root of R.
        """
        (sigma2,) = checked(noise_var=noise_var)
        return self.noise_gain * sigma2

    def squared_error(self, target: Numbers, value_a: Numbers, value_b: Numbers, noise_var: Numbers) -> Floats:
        """Expected squared error against ``target``, squared bias plus variance."""
        (goal,) = checked(target=target)
        return (self.mean(value_a, value_b) - goal) ** 2 + self.variance(noise_var)


def bayesian_retrieval(
    writes_a: Numbers,
    writes_b: Numbers,
    cosine: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    overlap: Overlap | None = None,
) -> Retrieval:
    """Recall of the static Bayesian memory, whatever the order of the writes.

    Weights ``u^T N (p0 G N + r I)^{-1} p0``, ``N = diag(n_a, n_b)``, ``G = [[1, c], [c, 1]]``; noise gain
    ``w_a^2 / n_a + w_b^2 / n_b``, as the memory weighs all writes of one key alike.

    Args:
        writes_a: n_a, 0 for none.
        writes_b: n_b, 0 for none.
        cosine: c between the unit keys.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.
        overlap: cosines of the query with either key; ``None`` queries at the first key.

    Returns:
        The recall's weights and noise gain; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n_a, n_b, c, u_a, u_b = _counted(writes_a, writes_b, cosine, overlap)
    r, p0 = checked(obs_noise=obs_noise, prior_var=prior_var)
    a, b = p0 * n_a, p0 * n_b
    determinant = (a + r) * (b + r) - c**2 * a * b
    each_a = p0 * ((b + r) * u_a - c * b * u_b) / determinant  # weight of a single write
    each_b = p0 * ((a + r) * u_b - c * a * u_a) / determinant
    return Retrieval(n_a * each_a, n_b * each_b, n_a * each_a**2 + n_b * each_b**2)  # Eq. (31)


def bayesian_predictive_var(
    writes_a: Numbers,
    writes_b: Numbers,
    cosine: Numbers,
    obs_noise: Numbers,
    prior_var: Numbers = 1.0,
    overlap: Overlap | None = None,
) -> Floats:
    """What the static Bayesian memory reports as its variance at a unit query, ``q^T P q``.

    ``p0 - p0 (w_a u_a + w_b u_b)`` with the weights of ``bayesian_retrieval``. It depends on no value.

    Args:
        writes_a: n_a, 0 for none.
        writes_b: n_b, 0 for none.
        cosine: c between the unit keys.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.
        overlap: cosines of the query with either key; ``None`` queries at the first key.

    Returns:
        The variance of each recalled channel before observation noise; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    *_, u_a, u_b = _counted(writes_a, writes_b, cosine, overlap)
    (p0,) = checked(prior_var=prior_var)
    recall = bayesian_retrieval(writes_a, writes_b, cosine, obs_noise, prior_var, overlap)
    return p0 * (1 - recall.weight_a * u_a - recall.weight_b * u_b)


def bayesian_limit(writes_a: Numbers, cosine: Numbers, obs_noise: Numbers, prior_var: Numbers = 1.0) -> Retrieval:
    """Recall at the first key once the second has been written without end: ``c b + x (a - c b)``.

    ``x = p0 (1 - c^2) n_a / (p0 (1 - c^2) n_a + r)``: the first association is kept in so far as it had
    evidence in the direction that the second key does not share. ``weight_a`` is x.

    Args:
        writes_a: n_a, 0 for none.
        cosine: c between the unit keys.
        obs_noise: assumed observation noise variance r, positive.
        prior_var: p0, positive.

    Returns:
        The recall's weights and noise gain, ``x^2 / n_a``; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n_a, c, r, p0 = checked(writes_a=writes_a, cosine=cosine, obs_noise=obs_noise, prior_var=prior_var)
    own = p0 * (1 - c**2)
    each_a = own / (own * n_a + r)
    kept = n_a * each_a  # Eq. (32)
    return Retrieval(kept, c * (1 - kept), n_a * each_a**2)


def delta_rule_retrieval(
    writes_a: Numbers, writes_b: Numbers, cosine: Numbers, beta: Numbers, overlap: Overlap | None = None
) -> Retrieval:
    """Recall of the delta rule, all writes of a before all of b.

    With ``A = 1 - (1 - beta)^{n_a}`` and B alike, weights ``A (u_a - c B u_b)`` and ``B u_b``; the noise gain
    is ``beta / (2 - beta)`` times ``(u_a - c B u_b)^2 (1 - (1 - beta)^{2 n_a}) + u_b^2 (1 - (1 - beta)^{2 n_b})``.

    Args:
        writes_a: n_a, 0 for none.
        writes_b: n_b, 0 for none.
        cosine: c between the unit keys.
        beta: step size, in (0, 2); under the covariance reset ``beta = p0 / (p0 + r)``.
        overlap: cosines of the query with either key; ``None`` queries at the first key.

    Returns:
        The recall's weights and noise gain; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n_a, n_b, c, u_a, u_b = _counted(writes_a, writes_b, cosine, overlap)
    (step,) = checked(beta=beta)
    left_a, left_b = (1 - step) ** n_a, (1 - step) ** n_b
    return _delta_rule(left_a, left_b, c, step, u_a, u_b)


def delta_rule_limit(writes_a: Numbers, cosine: Numbers, beta: Numbers) -> Retrieval:
    """Recall at the first key once the second has been written without end: ``(1 - c^2) a_hat + c b``.

    ``a_hat = (1 - (1 - beta)^{n_a}) a``: the overlap is lost however much evidence the first had.

    Args:
        writes_a: n_a, 0 for none.
        cosine: c between the unit keys.
        beta: step size, in (0, 2).

    Returns:
        The recall's weights and noise gain; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n_a, c, step = checked(writes_a=writes_a, cosine=cosine, beta=beta)
    return _delta_rule((1 - step) ** n_a, np.zeros_like(step), c, step, np.ones_like(c), c)


def linear_attention_retrieval(
    writes_a: Numbers, writes_b: Numbers, cosine: Numbers, overlap: Overlap | None = None
) -> Retrieval:
    """Recall of linear attention: ``n_a u_a a + n_b u_b b``, noise gain ``n_a u_a^2 + n_b u_b^2``.

    Args:
        writes_a: n_a, 0 for none.
        writes_b: n_b, 0 for none.
        cosine: c between the unit keys.
        overlap: cosines of the query with either key; ``None`` queries at the first key.

    Returns:
        The recall's weights and noise gain; arguments broadcast.

    Raises:
        ValueError: an argument outside its domain.

    Source: own derivation, docs/math.md section 6.
    """
    n_a, n_b, _, u_a, u_b = _counted(writes_a, writes_b, cosine, overlap)
    return Retrieval(n_a * u_a, n_b * u_b, n_a * u_a**2 + n_b * u_b**2)  # Eq. (34)


def _delta_rule(left_a: Floats, left_b: Floats, c: Floats, step: Floats, u_a: Floats, u_b: Floats) -> Retrieval:
    """``left`` is the share of each value not yet learned, ``(1 - beta)^n``."""
    through_a = u_a - c * (1 - left_b) * u_b  # Eq. (33)
    noise_gain = step / (2 - step) * (through_a**2 * (1 - left_a**2) + u_b**2 * (1 - left_b**2))
    return Retrieval((1 - left_a) * through_a, (1 - left_b) * u_b, noise_gain)


def _counted(
    writes_a: Numbers, writes_b: Numbers, cosine: Numbers, overlap: Overlap | None
) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    n_a, n_b, c = checked(writes_a=writes_a, writes_b=writes_b, cosine=cosine)
    if overlap is None:
        return n_a, n_b, c, np.ones_like(c), c
    (u_a,), (u_b,) = checked(overlap=overlap[0]), checked(overlap=overlap[1])
    return n_a, n_b, c, u_a, u_b
