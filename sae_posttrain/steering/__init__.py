"""Steer outside of training: answers with and without, a dose curve, a conversation, files for other programs."""
