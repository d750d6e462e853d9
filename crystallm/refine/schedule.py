"""How much noise there is at each time step: the width sigma in Å, the signal-to-noise ratio, and DDPM's β and ᾱ.

Noise is added, not mixed in: x_t = x_0 + sigma_t ε, wrapped into the cell (variance exploding; Song et al. 2021,
arXiv 2011.13456, section 3.4), since a coordinate on a torus cannot be scaled. Divided by sqrt(1 + (sigma/L)²), the
same path is DDPM's (Ho et al. 2020, arXiv 2006.11239) with ᾱ = 1 / (1 + (sigma/L)²) in units of L = 1 Å, so that
schedules known by name from there serve here too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ScheduleName = Literal["geometric", "linear", "cosine", "sigmoid"]
SIGMA_MIN_ANG, SIGMA_MAX_ANG = 0.02, 4.0  # below: what thermal motion hides; above: uniform in cells up to 10 Å


@dataclass(frozen=True, eq=False)
class Schedule:
    """Arrays over the time steps 1 … T, ascending in noise."""

    name: ScheduleName
    sigma_ang: Floats  # (T,)

    @property
    def snr(self) -> Floats:
        """(T,) signal-to-noise ratio, (1 Å / sigma)²"""
        return 1 / self.sigma_ang**2

    @property
    def alpha_bar(self) -> Floats:
        """(T,) ᾱ_t = SNR / (1 + SNR)"""
        return self.snr / (1 + self.snr)

    @property
    def beta(self) -> Floats:
        """(T,) β_t = 1 - ᾱ_t / ᾱ_(t-1), with ᾱ_0 = 1"""
        return 1 - self.alpha_bar / np.concatenate([[1.0], self.alpha_bar[:-1]])


def make_schedule(
    name: ScheduleName = "geometric",
    timesteps: int = 200,
    sigma_min_ang: float = SIGMA_MIN_ANG,
    sigma_max_ang: float = SIGMA_MAX_ANG,
) -> Schedule:
    """Widths from sigma_min_ang to sigma_max_ang. ValueError for an unknown name, fewer than 2 steps or such widths.

    geometric: sigma in equal ratios (Song and Ermon 2019); linear: β from 0.1 to 20 a unit of time (DDPM's 1e-4 to 0.02
    at 1,000 steps; Song et al. 2021, eq. 32); cosine: ᾱ = cos²(…) (Nichol and Dhariwal 2021, eq. 17); sigmoid: ᾱ falls
    as a logistic (Jabri et al. 2022, from -3 to 3). Of the last three the stretch between the two widths is taken, in
    equal steps of their time: from end to end most of a curve would lie below the one width and above the other.
    """
    if timesteps < 2:
        raise ValueError(f"timesteps must be at least 2, got {timesteps}")
    if not 0 < sigma_min_ang < sigma_max_ang:
        raise ValueError(f"sigma_min_ang must be above 0 and below sigma_max_ang, got {sigma_min_ang}, {sigma_max_ang}")
    if name == "geometric":
        return Schedule(name, np.geomspace(sigma_min_ang, sigma_max_ang, timesteps))
    time = np.linspace(0, 1, 100_001)[1:-1]
    if name == "linear":
        alpha_bar = np.exp(-(0.1 * time + 9.95 * time**2))
    elif name == "cosine":
        alpha_bar = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    elif name == "sigmoid":
        ends = 1 / (1 + np.exp(np.array([-3.0, 3.0])))
        alpha_bar = (1 / (1 + np.exp(6 * time - 3)) - ends[1]) / (ends[0] - ends[1])
    else:
        raise ValueError(f"no schedule {name!r}; there are {', '.join(get_args(ScheduleName))}")
    curve = np.log((1 - alpha_bar) / alpha_bar) / 2  # (99_999,) ln sigma, ascending
    first, last = np.log([sigma_min_ang, sigma_max_ang])
    if first < curve[0] or last > curve[-1]:
        low, high = np.exp(curve[[0, -1]])
        raise ValueError(
            f"the {name} schedule has widths of {low:.2g} to {high:.3g} Å, got {sigma_min_ang}, {sigma_max_ang}"
        )
    start, end = np.interp([first, last], curve, time)
    return Schedule(name, np.exp(np.interp(np.linspace(start, end, timesteps), time, curve)))
