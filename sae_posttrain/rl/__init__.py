"""Steered GRPO: reinforcement learning whose groups hold a bad case provoked on purpose."""
