"""tgm_scale: text-guided masked video pretraining at scale, on DeepSpeed."""

__version__ = "0.1.0"
