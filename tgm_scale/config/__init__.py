"""The typed configuration of a run: strict YAML sections, dotted overrides, checks that need no GPU.

`load("configs/x.yaml", ["train.steps=100"])` returns a frozen `Config` or raises ValueError with every mistake in it:
the key, what was found, what was wanted, the nearest key that exists.
"""

from tgm_scale.config.data_sections import DataConfig, Section
from tgm_scale.config.files import (
    CONFIGS,
    checked,
    digest_tree,
    dump,
    from_tree,
    lay_over,
    load,
    packaged,
    read_for_a_start,
    read_tree,
    written,
)
from tgm_scale.config.mistakes import COMMAND_LINE, all_keys
from tgm_scale.config.sections import Config, OptimConfig, RunSettings

__all__ = [
    "COMMAND_LINE",
    "CONFIGS",
    "Config",
    "DataConfig",
    "OptimConfig",
    "RunSettings",
    "Section",
    "all_keys",
    "checked",
    "digest_tree",
    "dump",
    "from_tree",
    "lay_over",
    "load",
    "packaged",
    "read_for_a_start",
    "read_tree",
    "written",
]
