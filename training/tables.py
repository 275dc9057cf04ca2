"""Reading the tables that data sets come with: CSV, Excel and MATLAB files, and finding the pictures they name."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def existing(root: Path, *names: str) -> Path:
    """The first of these files or folders below a root that exists.

    Raises:
        FileNotFoundError: there is none of them.
    """
    for name in names:
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{root} has no {' or '.join(names)}; expected the data set as it was released.")


def read_csv(path: Path, columns: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8 text or no table, lacks one of the columns, has no rows, or a row with too few or
            too many cells.
    """
    reader, rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True), []
    try:
        _check_columns(path, columns, reader.fieldnames or ())
        for row in reader:
            rows.append(row)
            _check_cells(path, reader.line_num, row, columns)
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num + 1} of {path} cannot be read ({error}); look for a lonely quotation mark."
        ) from error
    if not rows:
        raise ValueError(f"{path} has a header and no rows; expected one row per picture.")
    return rows


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is in another encoding.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} of {path} is no UTF-8 text; save the table as UTF-8.") from error


def read_rows(path: Path, sheet: str | None = None) -> list[tuple[Any, ...]]:
    """All rows of a sheet of an Excel file, without looking for a header.

    Args:
        path: an .xlsx file.
        sheet: its name; the first one by default.

    Raises:
        ImportError: openpyxl is not installed.
        ValueError: the file is damaged, or there is no such sheet.
    """
    try:
        import openpyxl
    except ImportError as error:
        raise ImportError(f"{path} is an Excel file, which needs openpyxl: pip install iqguide[train].") from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files make openpyxl raise almost any type
        raise ValueError(f"{path} cannot be read as an Excel file ({error}); get it again.") from error
    try:
        if sheet is not None and sheet not in book.sheetnames:
            raise ValueError(f"{path} has no sheet {sheet!r}; expected it among {', '.join(book.sheetnames)}.")
        return list(book[sheet or book.sheetnames[0]].iter_rows(values_only=True))
    finally:
        book.close()


def read_xlsx(path: Path, columns: Sequence[str], sheet: str | None = None) -> list[dict[str, Any]]:
    """The rows below the first row of a sheet that holds all the columns' names; empty rows are left out.

    Args:
        path: an .xlsx file.
        columns: names that the header must have.
        sheet: its name; the first one by default.

    Raises:
        ImportError: openpyxl is not installed.
        ValueError: the file is damaged, or there is no such sheet or header.
    """
    lines = read_rows(path, sheet)
    header = next((i for i, line in enumerate(lines) if set(columns) <= set(line)), 0)
    _check_columns(path, columns, ["" if cell is None else str(cell) for cell in (lines or [()])[header]])
    rows = [dict(zip(lines[header], line, strict=False)) for line in lines[header + 1 :]]
    return [row for row in rows if row[columns[0]] is not None]


def read_mat(path: Path, name: str) -> np.ndarray:
    """One variable of a MATLAB file, flat; texts in cells become str.

    Raises:
        ValueError: the file is damaged, or has no such variable.
    """
    from scipy.io import loadmat

    try:
        variables = loadmat(path)
    except OSError:
        raise
    except Exception as error:  # damaged files make scipy raise almost any type
        raise ValueError(f"{path} cannot be read as a MATLAB file ({error}); get it again.") from error
    if name not in variables:
        raise ValueError(f"{path} has no variable {name!r}; expected the file as it was released.")
    flat = variables[name].ravel()
    return np.array([str(np.ravel(cell)[0]) for cell in flat]) if flat.dtype == object else flat


def number(value: object, where: object, what: str = "score") -> float:
    """A cell as a number.

    Raises:
        ValueError: it is none; `what` and `where` say of what and whose it is. NaN is a number here.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the {what} of {where} is {value!r}; expected a number.") from None


class Finder:
    """Finds files of a folder whatever the case of their names, which differs between copies of a data set."""

    def __init__(self, folder: Path, files: Iterable[Path] | None = None) -> None:
        self.folder = folder
        files = folder.iterdir() if files is None else files
        self.files = {file.name.lower(): file for file in files}

    def __call__(self, name: str) -> Path:
        """The file of that name; where there is none, the path where it should be."""
        return self.files.get(name.lower(), self.folder / name)


class Locator:
    """Finds the files that a table names, also where it writes them with backslashes, or letters in another form.

    One letter can be one code point or two (NFC and NFD of Unicode); macOS writes the latter, most tables the former.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, Path]] = {}

    def __call__(self, path: Path) -> Path:
        """The file; where there is none, the path as it is written."""
        if path.is_file():
            return path
        file = Path(path.anchor)
        for part in Path(str(path).replace("\\", "/")).parts[len(file.parts) :]:
            exact = file / part
            file = exact if exact.exists() else self._alike(file).get(unicodedata.normalize("NFC", part), exact)
        return file if file.is_file() else path

    def _alike(self, folder: Path) -> dict[str, Path]:
        if folder not in self._names:
            entries = folder.iterdir() if folder.is_dir() else ()
            self._names[folder] = {unicodedata.normalize("NFC", entry.name): entry for entry in entries}
        return self._names[folder]


def _check_cells(path: Path, line: int, row: dict[str | None, Any], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if row.get(name, "") is None]
    if missing:
        raise ValueError(f"line {line} of {path} has no {missing[0]}; expected a cell for every column of the header.")
    if any(row.get(None, ())):  # such as a comma in a number
        raise ValueError(f"line {line} of {path} has more cells than the header; put a cell with a comma in quotes.")


def _check_columns(path: Path, wanted: Sequence[str], columns: Sequence[str]) -> None:
    twice = [name for name, count in Counter(columns).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path} has the column {twice[0]!r} more than once; expected it once: rename or remove one.")
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise ValueError(
            f"{path} has no column {missing[0]!r}; expected {', '.join(wanted)}, got {', '.join(columns)}."
        )
