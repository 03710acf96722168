"""Shared by all tests: third-party imports prepared, threads capped, the local real material found by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

# `make gpu` sets TGM_TEST_GPU=1 and runs the tests marked gpu, and no others. Else no test touches a GPU: none is seen
# by torch, here or in the processes that tests start.
os.environ.update({} if os.environ.get("TGM_TEST_GPU") == "1" else {"CUDA_VISIBLE_DEVICES": ""})
os.environ["DS_ACCELERATOR"] = "cuda" if os.environ.get("TGM_TEST_GPU") == "1" else "cpu"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from tgm_scale.runtime.compat import prepare_torchvision

prepare_torchvision()
torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Either the tests that need a GPU, or the others: CUDA is visible to a session as a whole, or not at all.

    TGM_TEST_GPU=cpu: the former on the CPU, as far as they can: those that ask for a `device` (tests/gpu)."""
    on_gpu = os.environ.get("TGM_TEST_GPU") in ("1", "cpu")
    chosen = [item for item in items if (item.get_closest_marker("gpu") is not None) == on_gpu]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in chosen if os.environ.get("TGM_TEST_GPU") == "cpu" else []:
        if "device" not in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="needs CUDA itself"))


@pytest.fixture(autouse=True)
def no_launcher_is_left() -> Iterator[None]:
    """A run in this process sets what a launcher would; a later test's job must not take it for its own."""
    yield
    if torch.distributed.is_initialized():  # of a run that failed: other ranks may not come to leave it
        deepspeed = sys.modules.get("deepspeed")  # which keeps references to a group that torch alone destroyed
        known = deepspeed is not None and deepspeed.comm.is_initialized()
        (deepspeed.comm if known else torch.distributed).destroy_process_group()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real videos, captions, masks and tokenizer files; tests that need it skip by name without it."""
    folder = os.environ.get("TGM_REAL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("TGM_REAL_DATA does not name the folder of real test material")
    return Path(folder)


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, tiny CLIP in the Hugging Face layout: random weights, and a vocabulary learned from a few captions."""
    import transformers

    from tgm_scale.demo.clip.tokenizer import write_tokenizer

    folder = tmp_path_factory.mktemp("towers") / "tiny_clip"
    captions = [f"texture {i}" for i in range(20)] + [f"{i} moving" for i in range(20)]
    vocabulary = write_tokenizer(captions, folder, context=16)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape["projection_dim"] = 24
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    text = {**shape, **ends, "vocab_size": vocabulary, "max_position_embeddings": 16}
    vision = {**shape, "image_size": 32, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder
