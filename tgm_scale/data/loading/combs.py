"""A word about interlaced clips: their frames show two moments at once, in combs, and the loader leaves them so."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from tgm_scale.data.loading.sampling import Sample


class CombNotice:
    """Warns of the first interlaced sample by name, and again with their count whenever that is ten times as many."""

    def __init__(self) -> None:
        self.samples, self.interlaced = 0, 0
        self._told_at = 1

    def see(self, samples: Iterable[Sample]) -> None:
        """Count these samples."""
        for sample in samples:
            self.samples += 1
            self.interlaced += sample.interlaced
            if sample.interlaced and self.interlaced == self._told_at:
                self._told_at *= 10
                warnings.warn(
                    f"{sample.key} is interlaced: its frames show two moments in combs ({self.interlaced} of "
                    f"{self.samples} samples so far); `tgm-scale shards check` names them all, "
                    "`tgm-scale shards make` deinterlaces",
                    stacklevel=2,
                )
