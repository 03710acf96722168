from tgm_scale.cli import entry

entry()
