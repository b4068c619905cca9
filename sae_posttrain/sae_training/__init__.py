"""Train an SAE on a site of any model: our recorder supplies activations to SAELens' trainer."""
