"""A small corpus with every kind of broken sample, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from short_run import CONFIG, moving_texture

from tgm_scale.data.shards.tars import ShardWriter
from tgm_scale.data.video.encode import encode_video

CLIPS = 45


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 samples in 5 shards: one video cut short, one text in its place, one without a caption, one of 2 frames."""
    folder = tmp_path_factory.mktemp("corpus") / "shards"
    with ShardWriter(folder, clips_per_shard=10) as writer:
        for i in range(CLIPS):
            video = encode_video(moving_texture(i)[: 2 if i == 30 else None], 12)
            members: dict = {"mp4": video, "json": {"captions": [f"texture {i % 17}", f"{i % 17} moving"]}}
            if i == 7:
                members["mp4"] = video[: len(video) // 3]
            elif i == 21:
                members["mp4"] = b"this is no video\n" * 20
            elif i == 33:
                members["json"] = {"source": "nowhere"}
            writer.write(f"clip{i:03d}", members)
    return folder


@pytest.fixture
def config(tmp_path: Path, shards: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(CONFIG.format(run=tmp_path / "run", shards=shards))
    return file
