"""Check before a pretraining, from the configurations, that an evaluation can read its result."""

from __future__ import annotations

from tgm_scale.assembly.run_plan import Shape
from tgm_scale.conversion.read import encoder_differences, size_in_keys
from tgm_scale.evaluation.features import refuse_shape
from tgm_scale.evaluation.run import refuse_reading
from tgm_scale.evaluation.settings import FinetuneConfig, FrozenConfig, SupervisedConfig
from tgm_scale.finetuning.setup import check, plan_finetuning
from tgm_scale.runtime.distributed import ProcessInfo


def refuse_unfit(
    command: str, config: FrozenConfig | FinetuneConfig, trained: Shape | None, process: ProcessInfo
) -> None:
    """Raise ValueError that names the evaluation's key if the evaluation cannot read the pretraining's result.

    trained: the pretraining's shape; None for a finetuning from scratch."""
    if isinstance(config, FinetuneConfig):
        plan = plan_finetuning(config, process)
        check(config, plan)
        if trained and (differing := encoder_differences(trained.size, plan.shape.size)):
            raise ValueError(
                f"model: an encoder of another size than the pretraining's: {', '.join(differing)}"
                f"{size_in_keys(trained.size)}"
            )
        return
    assert trained is not None
    image_size = config.encoder.image_size or trained.image_size
    refuse_shape(config.encoder.frames or trained.frames, image_size, trained.size)
    if command == "probe":
        assert isinstance(config, SupervisedConfig)
        refuse_reading(config.probe, trained.size, image_size)
