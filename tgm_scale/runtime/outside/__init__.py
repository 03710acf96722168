"""Readers of files from outside. Each checks the file, bounds its size, and has one kind of failure, a ValueError that
names the fault (OSError: the storage does not answer).

No other code of the project calls a parser of JSON, YAML, NumPy files, pictures, tars or weights; a test of the source
ensures this (tests/test_house.py). safetensors has its own reader, `runtime.tensors`."""
