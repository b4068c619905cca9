"""axolotl: a plugin."""
