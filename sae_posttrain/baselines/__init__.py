"""Methods without a sparse autoencoder: what features have to beat."""
