"""Arguments of every `tgm-scale` command. The implementations are in the packages below, imported when a command
runs."""
