"""The typed configuration of a run: strict YAML sections, dotted overrides, checks that need no GPU.

`load("configs/x.yaml", ["train.steps=100"])` returns a frozen `Config` or raises ValueError with every mistake in it:
the key, the value, the expected value, the nearest existing key.
"""

from tgm_scale.config.data_sections import DataConfig, Section
from tgm_scale.config.files import (
    CONFIGS,
    apply_overrides,
    checked,
    comparable,
    digest_tree,
    dump,
    from_tree,
    load,
    override,
    packaged,
    read_for_run,
    read_tree,
    to_yaml,
)
from tgm_scale.config.mistakes import COMMAND_LINE, all_keys
from tgm_scale.config.sections import Config, OptimConfig, RunSettings
from tgm_scale.config.study_section import EvaluationConfig, StudyConfig, StudySection

__all__ = [
    "COMMAND_LINE",
    "CONFIGS",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "OptimConfig",
    "RunSettings",
    "Section",
    "StudyConfig",
    "StudySection",
    "all_keys",
    "apply_overrides",
    "checked",
    "comparable",
    "digest_tree",
    "dump",
    "from_tree",
    "load",
    "override",
    "packaged",
    "read_for_run",
    "read_tree",
    "to_yaml",
]
