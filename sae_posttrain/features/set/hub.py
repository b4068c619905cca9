"""A feature set on the Hub: its file fetched, and uploaded with a card and a picture."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .card import PICTURE, feature_card
from .feature_file import FILE_NAME, write_feature_file
from .picture import draw_features

if TYPE_CHECKING:
    from .feature_set import FeatureSet


def download_feature_file(repo: str | os.PathLike, revision: str | None) -> Path:
    """The file of `owner/repo[/path/to/file.safetensors]` on the Hub; `FileNotFoundError` if there is none."""
    parts = str(repo).split("/")
    if isinstance(repo, os.PathLike) or len(parts) < 2 or not all(parts) or parts[0] in (".", "..", "~"):
        raise FileNotFoundError(f"No feature set at {repo}. `sae-posttrain find-features` writes one.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    filename = "/".join(parts[2:]) or FILE_NAME
    if not filename.endswith(".safetensors"):
        filename = f"{filename}/{FILE_NAME}"
    try:
        return Path(hf_hub_download("/".join(parts[:2]), filename, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(
            f"No feature set at {repo}: there is no such file here, and the Hub says: {error}"
        ) from error


def upload_feature_file(feature_set: "FeatureSet", repo_id: str, private: bool | None, token: str | None) -> str:
    """The work of [`FeatureSet.push_to_hub`]."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_feature_file(feature_set, folder / FILE_NAME)
        try:
            has_picture = bool(draw_features(feature_set, folder / PICTURE))
        except (ImportError, ValueError):  # no matplotlib, or no statistics to draw
            has_picture = False
        if not api.file_exists(repo_id, "README.md"):  # one that is there may have been written by hand
            card = feature_card(feature_set, repo_id, has_picture=has_picture)
            (folder / "README.md").write_text(card, encoding="utf-8")
        return str(api.upload_folder(folder_path=folder, repo_id=repo_id))
