"""Shared by the tests of data: what is not there everywhere."""

from __future__ import annotations

import pytest

from tgm_scale.data.torchcodec_frames import check_torchcodec


@pytest.fixture(scope="session")
def torchcodec() -> None:
    """Tests that need torchcodec skip by name where it does not import."""
    try:
        check_torchcodec()
    except ValueError as error:
        pytest.skip(str(error))
