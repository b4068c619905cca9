"""SASFT: supervised fine-tuning with features held down."""
