"""Lists of videos with captions or labels, in the forms that people have them."""
