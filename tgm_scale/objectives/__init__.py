"""Terms of the training objective, such as masked reconstruction and masked video-text contrast."""
