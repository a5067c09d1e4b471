"""How images are decoded, cropped and put into the form that a model takes."""
