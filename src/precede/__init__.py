"""precede puts the stages of post-training in the right order: align first, then distil (arXiv 2509.23667)."""
