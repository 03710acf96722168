"""A loader of the run's parts, for tests: one rank of one process, all at its defaults but for what is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tgm_scale.contracts import BatchLayout
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards.index import Corpus

_LAYOUT = {"global_batch_size": "global_batch", "micro_batch_size": "micro_batch", "rank": "rank"} | {
    "world_size": "world_size"
}
_ORDER = ("window_shards", "weights")


def clip_loader(
    corpora: Sequence[Corpus], *, workers: int = 0, start_step: int = 0, stop_step: int, **values: Any
) -> ClipLoader:
    """The batch is a micro batch unless `micro_batch_size` says otherwise; the rest as in `Sampling`."""
    values = {"micro_batch_size": values["global_batch_size"]} | values
    layout = BatchLayout(**{name: values.pop(key) for key, name in _LAYOUT.items() if key in values})
    order = {key: values.pop(key) for key in _ORDER if key in values}
    samples = Samples.in_order(corpora, Sampling(**values), **order)
    return ClipLoader(samples, layout, range(start_step, stop_step), workers=workers)
