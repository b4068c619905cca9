"""Train an SAE of any model's site: our recorder feeds SAELens' trainer."""
