"""Pictures of a fixed few clips, their masks and their reconstructions, every `log.pictures_every` steps.

Nothing random is drawn, so they change no number of the run: the clips are the first of an order by the run's seed,
and their masks have the seeds that the run would give them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from tgm_scale.assembly.joint_module import MaskSampling
from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.assembly.towers import Towers
from tgm_scale.config import Config
from tgm_scale.contracts import Batch, Mask
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.evaluation.watched import drawn, watched_clips
from tgm_scale.runtime.distributed import HostCollectives
from tgm_scale.training.clip_guidance import ClipGuidance
from tgm_scale.training.step import PreparedBatch


class Pictures:
    """The pictured clips, read and masked once by the main process. Drawing a picture is collective.

    Raises ValueError on the main process where no clip can be used."""

    def __init__(
        self, config: Config, plan: RunPlan, corpora: list[Corpus], towers: Towers, collectives: HostCollectives
    ):
        device = collectives.process.device
        found = None
        if collectives.process.is_main:
            clips, part, of_what = masked_clips(config, plan, corpora, towers, device)
            print(f"log.pictures_every: {len(clips)} clips of {of_what}: {', '.join(clips.keys)}", flush=True)
            masks = None if part.mask is None else (part.mask.visible.cpu(), part.mask.target.cpu())
            heads = None if part.heads_BASRC is None else part.heads_BASRC.cpu()
            found = clips.keys, clips.video.contiguous(), clips.seeds, heads, masks
        self.names, video, seeds, heads, masks = collectives.broadcast(found)
        # every rank has all clips: at ZeRO stage 3 all ranks gather the weights together, layer by layer
        self.video = video.to(device)
        self.sampling = MaskSampling(seeds.to(device), None if heads is None else heads.to(device))
        self.mask = None if masks is None else Mask(*(tokens.to(device) for tokens in masks))
        self.normalise_by = config.objective.normalise_by

    def __call__(self, module: Any) -> Image.Image:
        """Draw with a `JointModule`, in evaluation mode meanwhile, and with a learned mask as it is now.
        Collective."""
        was_training = module.training
        module.eval()
        mask = self.mask or module.draw(self.video, self.sampling)
        picture = drawn(module.model, self.names, self.video, mask, self.normalise_by)
        module.train(was_training)
        return picture


def masked_clips(
    config: Config, plan: RunPlan, corpora: list[Corpus], towers: Towers, device: torch.device
) -> tuple[Batch, PreparedBatch, str]:
    """Return the clips on the host, prepared on the device (a learned mask is None there), and a description of them.

    Raises ValueError where no clip can be used."""
    assert plan.masker is not None
    clips, of_what = watched_clips(config, plan, corpora)
    return clips, ClipGuidance(plan.masker, towers, ToDevice(device))(clips), of_what
