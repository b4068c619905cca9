"""Find a model's decoder blocks, record what they write, and change it. Independent of SAEs and trainers."""
