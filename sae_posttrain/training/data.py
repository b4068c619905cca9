"""Loads the data of a recipe (a file, a folder, a Hub id or a mixture), checks it, and puts it in TRL's form."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..conversations import read_row, with_messages
from ..measure.answers.rows import DATA_ENDINGS, is_data_file, read_rows
from ..row_checks import located

CheckRows = Callable[..., bool]
"""[`require_training_rows`] or [`require_prompt_rows`] with its settings. It takes the rows and `source`."""


def require_data_file(name: str) -> None:
    """Raise a `FileNotFoundError` if `name` is a data file or looks like a path, and does not exist."""
    path = Path(name).expanduser()
    looks_local = is_data_file(name) or path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if looks_local and not path.exists():
        raise FileNotFoundError(f"There is no file {name} (`dataset_name`).")
    if path.is_file() and not is_data_file(name):
        raise ValueError(
            f"{name} (`dataset_name`) is not a {', '.join(DATA_ENDINGS[:-1])} or {DATA_ENDINGS[-1]} file. Convert it, "
            "or give it the ending it should have."
        )


def load_file(name: str, split: str, check: CheckRows | None, *, streaming: bool = False) -> Any:
    """
    A data file as a dataset with one split.

    A file is read into memory if it holds messages in another form than TRL's, is a CSV file, or begins with a byte
    order mark. `datasets` maps any other file.
    """
    from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset
    from datasets.exceptions import DatasetsError

    require_data_file(name)
    if check is not None:
        changed = check(read_rows(name), source=name)
    else:
        changed = any(read_row(row, where) is not row for where, row in located(read_rows(name), name))
    kind = "parquet" if name.endswith(".parquet") else "json"
    if not (changed or name.removesuffix(".gz").endswith(".csv") or _begins_with_mark(name)):
        try:
            return load_dataset(kind, data_files={split: name}, streaming=streaming)
        except DatasetsError:
            pass  # values of several types in a column, which reading into memory can bring together
    try:
        dataset = Dataset.from_list(list(_converted(read_rows(name), name)))
    except (ValueError, TypeError) as error:  # of Arrow
        raise ValueError(f"{name}: a column holds values of several types ({error}). Give it one type.") from error
    if streaming:
        return IterableDatasetDict({split: dataset.to_iterable_dataset()})
    return DatasetDict({split: dataset})


def _converted(rows: Iterable[Mapping[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    return (dict(read_row(row, where)) for where, row in located(rows, source))


def _begins_with_mark(name: str) -> bool:
    import gzip

    if name.endswith(".parquet"):
        return False
    with (gzip.open if name.endswith(".gz") else open)(name, "rb") as file:
        return file.read(3) == b"\xef\xbb\xbf"


def checked(dataset: Any, source: str, check: CheckRows | None) -> Any:
    """
    A loaded dataset in TRL's form, with every row checked. The first thousand rows of a stream are checked now, and
    each row as it is read.
    """
    if check is None:
        return with_messages(dataset, source)
    changed = check(dataset, source=source)
    if hasattr(dataset, "__len__"):
        return with_messages(dataset, source) if changed else dataset
    return with_messages(
        dataset.map(_check_streamed, with_indices=True, fn_kwargs={"check": check, "of": source}), source
    )


def _check_streamed(row: Mapping[str, Any], index: int, check: CheckRows, of: str) -> Mapping[str, Any]:
    check([row], source=of, start=index + 1)
    return row
