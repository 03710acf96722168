"""State that terms of the objective keep between steps, such as the queue of `nearest`, stored beside checkpoints."""

from __future__ import annotations

from pathlib import Path

from tgm_scale.checkpoints import beside
from tgm_scale.objectives.terms import Objective


def write(folder: Path, objective: Objective, step: int, retained: list[int]) -> None:
    """Write the terms' state, as `beside.write` does; nothing where no term keeps any. May raise OSError."""
    kept = {f"{name}.{key}": value for name, term in objective.coupled.items() for key, value in term.state().items()}
    if kept:
        beside.write(folder, beside.TERMS, step, retained, kept)


def read(folder: Path, objective: Objective, step: int) -> None:
    """Restore the terms' state at a checkpoint. Raises ValueError where it is missing or of other terms."""
    keeping = {name: term for name, term in objective.coupled.items() if term.state()}
    if not keeping:
        return
    file = beside.file_of(folder, beside.TERMS, step)
    if not file.is_file():
        raise ValueError(
            f"{file}: missing: it has what {', '.join(keeping)} keeps between steps, and belongs to the checkpoint of "
            f"step {step}: restore it, or move that checkpoint away, to resume from the one before, or start in a new "
            f"run.dir with train.init_from={folder}"
        )
    tensors = beside.read(file)
    for name, term in keeping.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        try:
            term.restore(own)
        except ValueError as error:
            raise ValueError(f"{file}: {name}: {error}") from None
