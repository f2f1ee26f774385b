"""Reading pairs: TFDS builders, the Grain input pipeline, image files and colour."""
