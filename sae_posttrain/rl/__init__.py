"""Steered GRPO: reinforcement learning in which every prompt has a bad case, provoked on purpose."""
