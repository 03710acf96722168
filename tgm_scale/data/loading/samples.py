"""Reading and decoding of samples by their position in the run: the work of a loader worker, one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from tgm_scale.contracts import Problem
from tgm_scale.data.access.addresses import is_url
from tgm_scale.data.building.annotations import CAPTION_EXTENSIONS, caption_fault, captions_of
from tgm_scale.data.loading.order import Mixture, Order, SampleAddress
from tgm_scale.data.loading.sampling import Fetched, Sample, Sampling
from tgm_scale.data.shards.index import Corpus, DamagedMember, SampleRef
from tgm_scale.data.video.decode import Video, segments, window
from tgm_scale.data.video.frame_times import Unusable
from tgm_scale.data.video.motion import MotionRecorder
from tgm_scale.data.video.transforms import Crop, draw_crop, standardised
from tgm_scale.runtime import seeding

RELEVANCE_EXTENSION = "tgm.npy"


class SampleError(Unusable):
    """Sample that is unusable for a reason other than its video."""


def _without_caption(ref: SampleRef, members: dict[str, bytes]) -> SampleError:
    if fault := caption_fault(members):
        return SampleError(*fault)
    if ref.line is not None:
        return SampleError("no_caption", ref.line or "no usable one in a .txt or .json beside it")
    return SampleError("no_caption", f"members: {', '.join(sorted(ref.members))}")


class Samples:
    """Samples by their position in the run; all randomness of a sample is keyed by its identity, not by its location.

    Seeds derive from (run seed, epoch, corpus, sample, repeat): `corpus` is its fingerprint, so that moving a corpus
    to another folder does not change the run. Repeats of a sample share one window of frames, decoded once (as in
    MAE-ST and VideoMAE V2), and each draws its own crop, caption and mask.

    A broken sample keeps its place, with black clips and its problem. A shard that cannot be read raises OSError."""

    def __init__(self, corpora: Sequence[Corpus], mixture: Mixture, sampling: Sampling):
        self.corpora = list(corpora)
        self.mixture = mixture
        self.sampling = sampling

    @classmethod
    def in_order(
        cls,
        corpora: Sequence[Corpus],
        sampling: Sampling,
        window_shards: int = 16,
        weights: Sequence[float] | None = None,
    ) -> Samples:
        """Create samples with each corpus shuffled within `window_shards` shards. weights: share of each corpus in
        the run's samples (default: by size)."""
        orders = [
            Order(corpus.counts, seeding.key(sampling.seed, "order", corpus.fingerprint), window_shards)
            for corpus in corpora
        ]
        return cls(corpora, Mixture(orders, weights), sampling)

    @property
    def remote(self) -> bool:
        """Whether reading may wait for a network."""
        return any(is_url(shard) for corpus in self.corpora for shard in corpus.shards)

    def read(self, position: int, clips_NTHW3: Tensor) -> Sample:
        """Read the sample at this position of the run, decoding its uint8 pixels into the given memory."""
        return self.decode(self.fetch(position), clips_NTHW3)

    def fetch(self, position: int) -> Fetched:
        """Return the bytes of the sample at this position; thread-safe."""
        return self.fetch_at(self.mixture.locate(position))

    def fetch_at(self, address: SampleAddress) -> Fetched:
        """Return the bytes of the sample at this address; thread-safe."""
        corpus = self.corpora[address.corpus]
        ref = corpus.sample(address.shard, address.row)
        seeds = [
            seeding.key(self.sampling.seed, "sample", address.epoch, corpus.fingerprint, ref.within, repeat)
            for repeat in range(self.sampling.repeated_augmentation)
        ]
        clip_id = seeding.key("clip", corpus.fingerprint, ref.within)
        try:
            return Fetched(ref, corpus.read(ref, self._wanted(ref)), seeds, clip_id)
        except DamagedMember as error:
            return Fetched(ref, {}, seeds, clip_id, error.problem)

    def decode(self, fetched: Fetched, clips_NTHW3: Tensor) -> Sample:
        """Decode a fetched sample, the second half of `read`."""
        if fetched.problem is not None:
            return self._blank(fetched, fetched.problem, clips_NTHW3)
        try:
            return self._clips(fetched, clips_NTHW3)
        except Unusable as error:
            return self._blank(fetched, Problem(fetched.ref.name, error.reason, error.detail), clips_NTHW3)

    def _wanted(self, ref: SampleRef) -> list[str]:
        extensions = [ref.video]
        if self.sampling.captions:
            extensions += CAPTION_EXTENSIONS
        if self.sampling.relevance:
            extensions.append(RELEVANCE_EXTENSION)
        return extensions

    def _clips(self, fetched: Fetched, clips_NTHW3: Tensor) -> Sample:
        sampling = self.sampling
        ref, members, seeds = fetched.ref, fetched.members, fetched.seeds
        choices = captions_of(members) if sampling.captions else [""]
        if not choices:
            raise _without_caption(ref, members)
        drawn = [int(seeding.draw(seed, "caption")[0] * len(choices)) for seed in seeds]
        asked = [list(range(len(choices))) if sampling.caption_sets else [number] for number in drawn]
        recorder = MotionRecorder() if sampling.motion else None
        with Video(members[ref.video], recorder) as video:
            indices = self._indices(video.count, seeds[0])
            seconds_T = np.array([video.time(index) for index in indices])
            crops = self._cut(video, indices, seeds, clips_NTHW3)
        return Sample(
            captions=[choices[number] for number in drawn],
            key=ref.name,
            seeds=seeds,
            clip_id=fetched.clip_id,
            crops=[crop.row() for crop in crops],
            start=seconds_T[0],
            relevance=self._relevance(members, crops, asked, seconds_T) if sampling.relevance else None,
            problem=None,
            motion=None if recorder is None else self._motion(recorder, indices, crops),
            caption_set=choices if sampling.caption_sets else None,
            flow=self._flow(clips_NTHW3),
            interlaced=video.interlaced,
        )

    def _indices(self, count: int, seed: int) -> np.ndarray:
        """Return the frames of a clip out of `count`: a window, or one frame of each of equal segments."""
        sampling = self.sampling
        if sampling.segments:
            draws, most = seeding.draw(seed, "segments", sampling.frames), sampling.time_jitter
            start, longer = (most * (2 * draw - 1) for draw in seeding.draw(seed, "time jitter", 2))
            return segments(count, draws, start, 1 + longer)
        return window(count, sampling.frames, sampling.stride, seeding.draw(seed, "offset")[0])

    def _cut(self, video: Video, indices: np.ndarray, seeds: list[int], clips_NTHW3: Tensor) -> list[Crop]:
        """Return the crop of each seed, and write its pixels of the frames `indices` into its clip.

        Frames are cropped as they arrive and the rest is discarded: keeping whole ones would cost a copy of each."""
        sampling = self.sampling
        distinct, places = np.unique(indices, return_inverse=True)
        crops: list[Crop] = []
        cuts: list[np.ndarray] = []
        for k, (_, image) in enumerate(video.frames(distinct)):
            if not crops:
                height, width, _ = image.shape
                crops = [draw_crop(sampling.crop, height, width, seed, sampling.flip) for seed in seeds]
                cuts = [np.empty((len(distinct), crop.height, crop.width, 3), np.uint8) for crop in crops]
            for crop, cut in zip(crops, cuts):
                cut[k] = crop.cut(image)
        for crop, cut, clip_THW3 in zip(crops, cuts, clips_NTHW3):
            if len(distinct) == len(indices):
                crop.resize_into(clip_THW3, cut)
            else:
                clip_THW3.copy_(crop.resize(cut, sampling.size)[places])
            if sampling.standardise:
                clip_THW3.copy_(standardised(clip_THW3))
        return crops

    def _relevance(
        self, members: dict[str, bytes], crops: list[Crop], asked: list[list[int]], seconds_T: np.ndarray
    ) -> np.ndarray:
        """Return the cached scores of the requested captions, averaged over each clip's captions, float32 [N, S, R,
        C]; the score of a slot is the mean over its frames."""
        grid, read = self.sampling.grid, self.sampling.relevance
        assert read is not None
        if RELEVANCE_EXTENSION not in members:
            remedy = "write them with tgm-scale shards cache, or set guidance.cached=false"
            raise SampleError("no_relevance", f"no member .{RELEVANCE_EXTENSION}: {remedy}")
        maps = []
        for crop, captions in zip(crops, asked):
            try:
                map_Tyx = np.mean([read(members[RELEVANCE_EXTENSION], k, seconds_T) for k in captions], axis=0)
            except ValueError:
                raise
            except Exception as error:
                raise SampleError("bad_relevance", str(error)) from None
            map_Syx = map_Tyx.reshape(grid.slots, -1, *map_Tyx.shape[1:]).mean(axis=1)
            maps.append(crop.resample(map_Syx, grid.rows, grid.columns).numpy())
        return np.stack(maps)

    def _motion(self, recorder: MotionRecorder, indices: np.ndarray, crops: list[Crop]) -> np.ndarray:
        """Return the codec's motion within each crop, float32 [N, S, R, C]; all 0 where the stream has no vectors."""
        grid = self.sampling.grid
        map_Syx = recorder.slots(indices, grid.slots)
        if map_Syx is None:
            return np.zeros((len(crops), grid.slots, grid.rows, grid.columns), np.float32)
        return np.stack([crop.resample(map_Syx, grid.rows, grid.columns).numpy() for crop in crops])

    def _flow(self, clips_NTHW3: Tensor) -> np.ndarray | None:
        flow, grid = self.sampling.flow, self.sampling.grid
        return None if flow is None else np.stack([flow(clip_THW3, grid) for clip_THW3 in clips_NTHW3])

    def _blank(self, fetched: Fetched, problem: Problem, clips_NTHW3: Tensor) -> Sample:
        clips_NTHW3.zero_()
        sampling, n = self.sampling, len(fetched.seeds)
        shape = (n, sampling.grid.slots, sampling.grid.rows, sampling.grid.columns)
        return Sample(
            captions=[""] * n,
            key=fetched.ref.name,
            seeds=fetched.seeds,
            clip_id=fetched.clip_id,
            crops=[(0.0,) * 5] * n,
            start=0.0,
            relevance=np.zeros(shape, np.float32) if sampling.relevance else None,
            problem=problem,
            motion=np.zeros(shape, np.float32) if sampling.motion else None,
            caption_set=[""] if sampling.caption_sets else None,
            flow=self._flow(clips_NTHW3),
        )
