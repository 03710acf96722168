"""The video masked autoencoder: encoder on visible tokens, light decoder, projection."""
