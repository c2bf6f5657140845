"""Images and annotations from disk to what a detector takes."""
