"""Masked reconstruction and masked video-text contrast."""
