"""From an SAE and texts to a `FeatureSet`: the few features that stand for something, and how they read on each group."""
