"""Look at what the model writes while it is trained: answers to the same prompts, again and again."""
