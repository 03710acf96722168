"""Which tokens are hidden: a saliency source and a selection rule."""
