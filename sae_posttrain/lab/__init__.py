"""The lab: a small trained model, its SAEs and texts that ship with the package, and the demo that runs on them."""
