"""Where a model's decoder blocks are, what they write, and how to change it. Knows nothing of SAEs or trainers."""
