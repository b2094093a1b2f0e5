"""A checkpoint's timestep tables: the numbers of every TCD step of a row, in the paper's names.

`diffusers.TCDScheduler` supplies the tables.
"""

from dataclasses import dataclass

import torch
from diffusers import TCDScheduler
from torch import Tensor

from deployments.contracts.jobs import real_steps

KNOWN_SCHEDULES = 256


@dataclass(frozen=True)
class Step:
    """One step of one row, as numbers.

    Attributes:
        t: timestep in [0, 999] that the network is told.
        alpha_t, sigma_t: signal and noise scales at t: sqrt(abar_t), sqrt(1 - abar_t).
        alpha_s, sigma_s: the same at s.
        rise, renoise: x_{t_prev} = rise * x_s + renoise * z.
        alpha_prev, sigma_prev: scales at t_prev, 1 and 0 after the last step: how a known
            picture is noised to stand beside x_{t_prev}.
        draws: whether a z is drawn from the row's generator (eta above 0, not the last step).
    """

    t: int
    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float
    rise: float
    renoise: float
    alpha_prev: float
    sigma_prev: float
    draws: bool


class Schedule:
    """Timestep tables of one checkpoint, from its scheduler's configuration.

    Args:
        scheduler: as `TCDScheduler.from_config` makes it. Its `prediction_type` must be
            epsilon, sample or v_prediction, else `ValueError`.

    Attributes:
        max_steps: the most that a row may take: the steps that its network was distilled from.
    """

    def __init__(self, scheduler: TCDScheduler) -> None:
        self.prediction_type: str = scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "sample", "v_prediction"):
            raise ValueError(f"prediction_type {self.prediction_type!r} is not supported")
        self.max_steps = int(scheduler.config.original_inference_steps)
        self._scheduler = scheduler
        self._abar: Tensor = scheduler.alphas_cumprod
        self._known: dict[tuple[int, float], tuple[Step, ...]] = {}

    def changed(self, beta_schedule: str | None, timestep_spacing: str) -> "Schedule":
        """The same schedule but for how its betas rise, if that is said, and where its timesteps
        lie: "leading" takes them from those that TCD was distilled from, "trailing" from all,
        evenly, the last included."""
        base = self._scheduler.config
        more: dict[str, object] = {}
        if beta_schedule is not None:
            more |= {"beta_schedule": beta_schedule, "trained_betas": None}
        if timestep_spacing == "trailing":
            more["original_inference_steps"] = base.num_train_timesteps
        return Schedule(TCDScheduler.from_config(base, **more))

    def steps(
        self, num_inference_steps: int, eta: float, strength: float = 1.0
    ) -> tuple[Step, ...]:
        """The steps of a row from noise to latents.

        Args:
            num_inference_steps: 1 to `max_steps`.
            eta: 0 to 1.
            strength: the share of the steps that is taken, the last ones; of less than one
                step there is none.
        """
        key = (num_inference_steps, eta)
        if key not in self._known:
            if len(self._known) >= KNOWN_SCHEDULES:  # eta is any number that a request names
                self._known.clear()
            self._scheduler.set_timesteps(num_inference_steps)
            timesteps = [int(t) for t in self._scheduler.timesteps]
            self._known[key] = tuple(
                self._step(t, t_prev, eta)
                for t, t_prev in zip(timesteps, [*timesteps[1:], None], strict=True)
            )
        taken = real_steps(num_inference_steps, strength)
        return self._known[key][num_inference_steps - taken :]

    def _step(self, t: int, t_prev: int | None, eta: float) -> Step:
        prev = torch.tensor(t_prev if t_prev is not None else 0)
        s = torch.floor((1 - eta) * prev).to(torch.long)
        abar_t, abar_s, abar_prev = self._abar[t], self._abar[s], self._abar[prev]
        return Step(
            t=t,
            alpha_t=float(abar_t.sqrt()),
            sigma_t=float((1 - abar_t).sqrt()),
            alpha_s=float(abar_s.sqrt()),
            sigma_s=float((1 - abar_s).sqrt()),
            rise=float((abar_prev / abar_s).sqrt()),
            renoise=float((1 - abar_prev / abar_s).clamp(min=0).sqrt()),
            alpha_prev=1.0 if t_prev is None else float(abar_prev.sqrt()),
            sigma_prev=0.0 if t_prev is None else float((1 - abar_prev).sqrt()),
            draws=eta > 0 and t_prev is not None,
        )
