"""The arguments of every command of `tgm-scale`: what a command does is in the rooms below, imported when it runs."""
