"""Frames of videos and pictures: by their times, cropped and scaled; and writing of videos."""
