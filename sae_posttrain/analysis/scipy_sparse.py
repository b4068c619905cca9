"""scipy, which the extra `analysis` installs, loaded on first use."""

from types import ModuleType


def scipy_sparse() -> ModuleType:
    """
    The module `scipy.sparse`.

    Raises:
        ImportError: If scipy is not installed.
    """
    try:
        from scipy import sparse
    except ImportError as error:
        raise ImportError(
            "Activations of many texts are kept as scipy's sparse arrays: pip install 'sae_posttrain[analysis]'."
        ) from error
    return sparse
