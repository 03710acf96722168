"""The one room in which files from outside are opened: each reader checks what it reads, bounds what it may take, and
has one kind of failure, a ValueError that says what is wrong (OSError: the storage does not answer).

Nothing else of the project calls a parser of JSON, YAML, NumPy's files, pictures, tars or weights; a test walks the
source and holds it (tests/test_house.py). safetensors has its own place beside it, `runtime.tensors`."""
