"""How many different contents more guests hold, from how many of the counted guests hold each.

Every content has a chance of being in a guest, the same for each guest: some are in all of them, some in one
alone, and between these chances are spread as a Beta distribution. Of n guests the contents that j hold are
then beta-binomial (Skellam, J. R. Stat. Soc. B 10, 1948); richness from such a mixture: Dorazio and Royle,
Biometrics 59, 2003.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import betaln, gammaln  # type: ignore[import-untyped]

# Contents come by runs of a file's pages: so many tell as much as one content that came for itself.
PAGES_TOGETHER = 16


@dataclass(frozen=True)
class Chances:
    """Contents by their chance of being in a guest, fitted to ``counted`` guests.

    ``alone``: of each guest and no other; ``common``: of every guest; ``between``: of those between, seen or
    not, with chances of Beta(``alpha``, ``beta``). Numbers of contents, which need not be whole.
    """

    counted: int
    common: float
    alone: float
    between: float
    alpha: float
    beta: float

    def new(self, guests: int) -> float:
        """Expected contents that so many guests hold beyond those of the guests counted."""
        return self.alone * (guests - self.counted) + self.between * (
            self._missed(self.counted) - self._missed(guests)
        )

    def _missed(self, guests: int) -> float:
        """The chance that none of so many guests holds a content of those between."""
        return float(np.exp(betaln(self.alpha, self.beta + guests) - betaln(self.alpha, self.beta)))


def fit_chances(held: Sequence[float]) -> Chances:
    """Fit to ``held[j]``, the contents that exactly j of n guests hold, j from 0 to n.

    The two shapes by penalized likelihood from the contents of 2 to n - 1 guests: each has a log-normal prior
    around 1 (all chances alike), which decides where there is little between; what is alone and what is
    common is the rest of ``held[1]`` and ``held[n]``. Two guests or one have nothing between.
    """
    n = len(held) - 1
    seen = np.array(held[2:n], dtype=float)
    if n < 3 or not seen.sum():
        return Chances(n, common=held[n] if n > 1 else 0.0, alone=held[1] / n, between=0.0, alpha=1, beta=1)

    def unlikely(logarithms: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
        shares = _beta_binomial(n, *np.exp(logarithms))[2:n]
        likelihood = seen @ np.log(shares / shares.sum()) / PAGES_TOGETHER
        return float(logarithms @ logarithms / 2 - likelihood)

    found = minimize(unlikely, np.zeros(2), method="Nelder-Mead", bounds=[(-4.0, 4.0)] * 2)
    alpha, beta = (float(value) for value in np.exp(found.x))
    shares = _beta_binomial(n, alpha, beta)
    # No more of them than leaves nothing negative alone or common.
    between = min(seen.sum() / shares[2:n].sum(), held[1] / shares[1], held[n] / shares[n])
    return Chances(
        counted=n,
        common=float(held[n] - between * shares[n]),
        alone=float(held[1] - between * shares[1]) / n,
        between=float(between),
        alpha=alpha,
        beta=beta,
    )


def _beta_binomial(n: int, alpha: float, beta: float) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """The chance that 0, 1 ... n of n guests hold a content."""
    j = np.arange(n + 1)
    ways = gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1)
    return np.asarray(np.exp(ways + betaln(j + alpha, n - j + beta) - betaln(alpha, beta)))
