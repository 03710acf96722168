"""The arguments of every command of `tgm-scale`: what a command does is in the packages below, imported when it
runs."""
