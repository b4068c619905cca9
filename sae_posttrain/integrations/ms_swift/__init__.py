"""ms-swift: functions for a file that is given as `--external_plugins`."""
