"""Agreement of masks with annotated objects."""
