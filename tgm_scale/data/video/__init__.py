"""Decoding of video frames by time, pictures as displayed, crops and scaling; encoding of clips."""
