"""From an SAE and texts to a `FeatureSet`: the few features that stand for a group, and how they read."""
