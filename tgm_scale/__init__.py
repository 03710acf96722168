"""tgm_scale: text-guided masked video pretraining at scale, on DeepSpeed.

The names below are for use in Python (docs/PYTHON.md); each is imported when it is first asked for, so that `import
tgm_scale` and `tgm-scale --help` import no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tgm_scale.python.corpus import Sample as Sample
    from tgm_scale.python.corpus import Samples as Samples
    from tgm_scale.python.corpus import open_corpus as open_corpus
    from tgm_scale.python.encoder import VideoEncoder as VideoEncoder
    from tgm_scale.python.encoder import load_encoder as load_encoder
    from tgm_scale.python.guidance import Guidance as Guidance
    from tgm_scale.python.guidance import load_guidance as load_guidance
    from tgm_scale.python.video import read_video as read_video

__version__ = "0.1.0"

_HOMES = {
    "load_encoder": "encoder",
    "VideoEncoder": "encoder",
    "read_video": "video",
    "load_guidance": "guidance",
    "Guidance": "guidance",
    "open_corpus": "corpus",
    "Samples": "corpus",
    "Sample": "corpus",
}
__all__ = [
    "Guidance",
    "Sample",
    "Samples",
    "VideoEncoder",
    "__version__",
    "load_encoder",
    "load_guidance",
    "open_corpus",
    "read_video",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.python.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__") and name not in __all__)]
