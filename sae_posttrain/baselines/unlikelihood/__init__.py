"""Unlikelihood training against repetition: the loss, the rows it is taken on, and a trainer for both."""
