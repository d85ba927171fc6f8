"""Sequential Monte Carlo over growing data, for posteriors of a handful of parameters.

Iterated batch importance sampling (Chopin 2002, Biometrika 89): a population starts as draws from the prior and takes
in the data batch by batch, each batch tempered in (Del Moral, Doucet, Jasra 2006), so that the posterior given the
earlier batches alone is there on the way. Particles move by differential evolution (ter Braak 2006): each half jumps
along differences of the other half, which leaves the target as it is. Several populations, which never exchange
particles, start from their own draws: where they end apart, the sampler has not converged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

#: Independent populations, and particles in each half of one.
STARTS, HALF = 3, 160
#: Moves after each step of tempering, and further ones once all the data are in.
MOVES, LAST_MOVES = 12, 100
#: A tempering step leaves this share of the populations effective.
KEPT = 0.4

Summary = Callable[[np.ndarray], np.ndarray]
LogLikelihood = Callable[[np.ndarray, np.ndarray], np.ndarray]


def grow(
    summary: Summary,
    log_likelihood: LogLikelihood,
    batches: Sequence[np.ndarray],
    dim: int,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, float]]:
    """Populations given each batch and those before it, and the log evidence of what they have taken in.

    Args:
        summary: (S, dim) parameters → (S, K), whatever the likelihood of each of the K points needs of them. The
            prior is standard normal in every parameter.
        log_likelihood: that (S, K), and (K,) powers that the points' likelihoods are raised to → (S,).
        batches: indices into the K points, in the order in which they are taken in.

    Yields:
        For each batch, (STARTS, 2·HALF, dim) equally weighted draws, and log p(data so far) up to a constant that
        depends on the data alone.
    """
    population = _Population(summary, log_likelihood, sum(map(len, batches)), dim, rng)
    for i, batch in enumerate(batches):
        while population.power[batch[0]] < 1.0:
            population.temper(batch)
            for _ in range(MOVES):
                population.move()
        for _ in range(LAST_MOVES if i == len(batches) - 1 else 0):
            population.move()
        yield population.x.reshape(STARTS, 2 * HALF, dim), population.log_evidence


class _Population:
    """Particles x, (STARTS, 2, HALF, dim), with what the likelihood needs of each."""

    def __init__(
        self, summary: Summary, log_likelihood: LogLikelihood, points: int, dim: int, rng: np.random.Generator
    ) -> None:
        self._summary, self._log_likelihood, self._rng = summary, log_likelihood, rng
        self.power = np.zeros(points)
        self.log_evidence = 0.0
        self.x = rng.standard_normal((STARTS, 2, HALF, dim))
        self.state = self._summarise(self.x)
        self.now = self._value(self.state, self.power)

    def temper(self, batch: np.ndarray) -> None:
        """Raise the batch's power as far as `KEPT` allows, and resample."""
        low, high = self.power[batch[0]], 1.0
        gain = self._gain(batch, high)
        if _effective(gain) < KEPT:
            for _ in range(8):
                middle = 0.5 * (low + high)
                gain = self._gain(batch, middle)
                low, high = (middle, high) if _effective(gain) >= KEPT else (low, middle)
            high = middle
        self.power[batch] = high
        self.log_evidence += float(gain.max() + np.log(np.exp(gain - gain.max()).mean()))
        now = self.now + gain
        for s in range(STARTS):
            chosen = _resample(gain[s].ravel(), self._rng)
            for array in (self.x[s], self.state[s], now[s]):
                flat = array.reshape(2 * HALF, -1)
                flat[:] = flat[chosen]
        self.now = now

    def move(self) -> None:
        """One differential-evolution step of either half."""
        rng, dim = self._rng, self.x.shape[-1]
        start = np.arange(STARTS)[:, None]
        for mine in (0, 1):
            here, pool = self.x[:, mine], self.x[:, 1 - mine]
            a = rng.integers(HALF, size=(STARTS, HALF))
            b = (a + rng.integers(1, HALF, size=(STARTS, HALF))) % HALF
            scale = 2.38 / np.sqrt(2 * dim) * rng.uniform(0.4, 1.6, size=(STARTS, HALF, 1))
            there = here + scale * (pool[start, a] - pool[start, b]) + 1e-4 * rng.standard_normal(here.shape)
            with np.errstate(
                all="ignore"
            ):  # where a jump ends off every scale its density is 0 or NaN, and not taken
                state = self._summarise(there)
                then = self._value(state, self.power)
            prior = 0.5 * ((here**2).sum(axis=-1) - (there**2).sum(axis=-1))
            taken = np.log(rng.random(then.shape)) < then - self.now[:, mine] + prior
            here[taken] = there[taken]
            self.state[:, mine][taken] = state[taken]
            self.now[:, mine][taken] = then[taken]

    def _gain(self, batch: np.ndarray, power: float) -> np.ndarray:
        raised = self.power.copy()
        raised[batch] = power
        return self._value(self.state, raised) - self.now

    def _summarise(self, x: np.ndarray) -> np.ndarray:
        return self._summary(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    def _value(self, state: np.ndarray, power: np.ndarray) -> np.ndarray:
        return self._log_likelihood(state.reshape(-1, state.shape[-1]), power).reshape(state.shape[:-1])


def _effective(log_weight: np.ndarray) -> float:
    """Share of the populations that is effective under these weights, on average over the starts."""
    w = np.exp(log_weight - log_weight.max(axis=(1, 2), keepdims=True)).reshape(STARTS, -1)
    return float((w.sum(axis=1) ** 2 / (w**2).sum(axis=1) / w.shape[1]).mean())


def _resample(log_weight: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Systematic resampling: the survivors' indices, shuffled so that the halves are alike."""
    w = np.exp(log_weight - log_weight.max())
    comb = (rng.random() + np.arange(len(w))) / len(w)
    return rng.permutation(np.searchsorted(np.cumsum(w) / w.sum(), comb).clip(max=len(w) - 1))
