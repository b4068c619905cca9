"""From a `FeatureSet` and a batch's residuals to one added loss term, for any trainer."""
