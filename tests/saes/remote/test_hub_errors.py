"""Whatever the Hub's library raises becomes one sentence that says what did not work and what to do."""

import pytest
from huggingface_hub import constants, errors

from sae_posttrain.saes.remote.hub_errors import explained, require_online


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("no connection\nand more"), "no connection$"),
        (errors.EntryNotFoundError("404: x.pt"), r"it is not there \(404: x.pt\)"),
        (
            errors.OfflineModeIsEnabled("offline"),
            "the Hub cannot be reached .OfflineModeIsEnabled: offline.*HF_HUB_OFFLINE",
        ),
        (errors.HTTPError("timed out"), "the Hub cannot be reached .HTTPError: timed out"),
        (errors.FileMetadataError(""), "the Hub cannot be reached .FileMetadataError: FileMetadataError"),
    ],
)
def test_errors_become_one_sentence(error, message):
    with (
        pytest.raises(FileNotFoundError, match=f"^x.pt cannot be read: {message}") as raised,
        explained("o/n", "x.pt cannot be read"),
    ):
        raise error
    assert raised.value.__cause__ is error


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), explained("o/n", "x.pt cannot be read"):
        raise ZeroDivisionError


def test_offline_mode_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    require_online("x.pt was not read before")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError, match="^Offline mode is on, and x.pt was not read before. Unset HF_HUB_OFFLINE"
    ):
        require_online("x.pt was not read before")
