"""Selection of the hidden tokens: a saliency source and a selection rule."""
