"""scikit-learn, which the extra `analysis` installs: where it is missing, the message says so."""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("Classifiers on features need scikit-learn: pip install 'sae_posttrain[analysis]'.") from error
