"""What every trainer of this package shares: the check of its data, its settings by name, its script."""
