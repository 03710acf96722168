"""What `tgm-scale benchmark` measures, one module each with `run(options)`, which returns its figures."""
