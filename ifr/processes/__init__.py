"""Start worker processes, stop them, and hear what they have to say."""
