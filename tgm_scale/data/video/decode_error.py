"""Why a clip cannot be decoded."""

from __future__ import annotations


class DecodeError(Exception):
    """A clip that cannot be decoded. `reason` is one of a few words, to be counted: `empty`, `not_a_video`,
    `truncated`, `damaged`, `no_frames`, `still`, `too_large`; `detail` is for the reader."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
