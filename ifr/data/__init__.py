"""Read images and annotations from disk into the form that a detector takes."""
