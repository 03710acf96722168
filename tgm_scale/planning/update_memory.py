"""Memory that DeepSpeed takes for the end of a step: for gradients that are collected and reduced, and for Adam.

`tgm-scale benchmark footprint` compares it with the peaks of runs (docs/PLANNING.md). All in bytes."""

from __future__ import annotations

from dataclasses import dataclass

from tgm_scale.assembly.run_plan import RunPlan

# DeepSpeed's defaults, in values: a bucket of gradients; at stage 3 gathered weights that may stay, those gathered in
# one message, and those that Adam works on at once
BUCKET, MAX_LIVE, PREFETCH, _SUB_GROUP = 5e8, 1e9, 5e7, 1e9


@dataclass(frozen=True)
class ReductionMemory:
    """Memory of reduction and update in one process of a plan. count: values in the model."""

    plan: RunPlan
    count: int

    @property
    def _values(self) -> float:
        """Values in a bucket when it is reduced."""
        return min(float(self.plan.engine.zero.get("reduce_bucket_size", BUCKET)), self.count)

    @property
    def _value(self) -> int:
        """Bytes of a value in a bucket: DeepSpeed stages fp32 sums at stage 1, at stage 3 the type that is sent."""
        return 2 if self._bf16 and self.plan.stage == 2 else 4

    @property
    def _bf16(self) -> bool:
        return self.plan.engine.precision == "bf16"

    @property
    def _on_gpu(self) -> bool:
        return self.plan.device.type == "cuda"

    @property
    def held(self) -> float:
        """Bytes of the buckets that stay. On a GPU they are whole from the first step on; on a CPU only what is
        written to is memory, and at stages 1 and 2 a new bucket is made for each backward pass: see `_beside`."""
        zero, stage = self.plan.engine.zero, self.plan.stage
        if stage == 0:
            return 0.0
        if not self._on_gpu:
            return self._value * self._values if stage == 3 else 0.0
        pairs = 2 if zero.get("overlap_comm", False) and stage < 3 else 1
        return float(zero.get("reduce_bucket_size", BUCKET)) * self._value * pairs

    @property
    def _beside(self) -> float:
        return 0.0 if self._on_gpu or self.plan.stage in (0, 3) else self._value * self._values

    @property
    def _share(self) -> float:
        """Values of a process that Adam works on at once."""
        share = self.count / self.plan.layout.world_size
        return min(share, self.plan.engine.zero.get("sub_group_size", _SUB_GROUP)) if self.plan.stage == 3 else share

    def reducing(self, activations: float, gradients: float) -> float:
        """Return the bytes where a bucket is full, or the backward pass ends: the remaining activations, and copies of
        the bucket for the collective, in the type that is sent. At stage 1 gradients have moved into the bucket."""
        stage, several = self.plan.stage, self.plan.layout.world_size > 1
        filled = self._values / self.count
        found = activations * (1 - filled) + self._beside
        if stage == 0:
            return found + self._values * (2 if self._bf16 else 4)
        if stage == 3:
            return found + self._values * (8 if self._bf16 else 4)
        found += self._values * (6 if self._bf16 and stage == 2 else 4) * several
        return found - (gradients * filled if stage == 1 else 0.0)

    def updating(self, gradients: float) -> float:
        """Return the bytes while the optimizer works: its gradient as one fp32 tensor, less the gradients that it is
        made of; and its temporaries: on a CPU two tensors of that size for Adam (on a GPU it is one kernel), on either
        one for Lion."""
        lion = self.plan.engine.optimizer == "lion"
        stage, one = self.plan.stage, self.plan.layout.world_size == 1
        if stage == 0:  # in fp32 it works on the parameters in turn
            return 4.0 * self.count * (self._bf16 + (lion and self._on_gpu))  # on a GPU Lion takes all at once
        own = 4 * self._share if lion else 0.0 if self._on_gpu else 8 * self._share
        if stage == 3:
            return own + 4 * self._share
        if self._bf16 and stage == 2:  # summed in that tensor
            return own
        lying = self._beside if one and not self._bf16 else 0.0  # with one process the gradients lie in the bucket
        return own + 4 * self._share + lying - gradients
