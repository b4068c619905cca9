"""ms-swift: what a file given as `--external_plugins` calls."""
