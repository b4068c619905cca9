"""Explain errors of the Hub, in one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def explained(repository: str, failed: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into a `FileNotFoundError` that says what `failed` and what to do."""
    from huggingface_hub import errors

    login = (
        "log in with `hf auth login` or set HF_TOKEN to a token that may read it, and accept the repository's "
        f"conditions on https://huggingface.co/{repository} if it has any"
    )
    try:
        yield
    except errors.GatedRepoError as error:
        raise FileNotFoundError(f"{failed}: {repository} is gated. To read it, {login}.") from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{failed}: the Hub has no repository {repository}, or it is private. If it is private, {login}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{failed}: {repository} has no such revision.") from error
    except errors.LocalEntryNotFoundError as error:
        raise FileNotFoundError(f"{failed}: {_first_line(error)}") from error
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"{failed}: it is not there ({_first_line(error)}).") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = f" To read it, {login}." if status in (401, 403) else " Try again later."
        raise FileNotFoundError(f"{failed}: the Hub answered {status}.{hint}") from error
    except (errors.HTTPError, errors.OfflineModeIsEnabled, errors.FileMetadataError) as error:
        raise FileNotFoundError(
            f"{failed}: the Hub cannot be reached ({type(error).__name__}: {_first_line(error)}). With "
            "HF_HUB_OFFLINE=1, what was read before is taken from this machine."
        ) from error


def require_online(missing: str) -> None:
    """Refuse to go on in offline mode; the message begins with what is `missing`."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"Offline mode is on, and {missing}. Unset HF_HUB_OFFLINE to fetch it, or ask for what is here."
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
