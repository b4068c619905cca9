"""Measuring answers: code-switching, loops, rates with intervals. Only `generate` needs torch."""
