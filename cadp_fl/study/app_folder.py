"""Where the Flower app's own files are: beside the library in a checkout, inside it in an installed wheel."""

import shutil
from pathlib import Path

import cadp_fl
from cadp_fl.errors import CadpError

__all__ = ["stage_app"]

APP_FILES = ("pyproject.toml", "LICENSE", "README.md", "clients", "server", "configs")


def stage_app(folder: Path) -> Path:
    """Copy the Flower app into a new folder below `folder`, and return it.

    Flower takes its app's name from the folder, and ships what it finds there.

    Raises:
        CadpError: this installation lacks the app's files.
    """
    library = Path(cadp_fl.__file__).resolve().parent
    for root in (library / "_app", library.parent):
        if (root / "clients" / "client_app.py").is_file():
            app = folder / "cadp-fl"
            app.mkdir()
            for name in APP_FILES:
                source = root / name
                if source.is_dir():
                    shutil.copytree(source, app / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, app / name)
            return app
    raise CadpError(f"The library brings the Flower app's files. Found none at '{library}'; install cadp-fl again.")
