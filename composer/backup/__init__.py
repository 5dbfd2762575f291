"""Backup: the whole state written to an archive, and an archive taken over."""

from composer.backup.contents import Manifest
from composer.backup.export import export_state
from composer.backup.inspect import inspect_archive
from composer.backup.restore import ImportReport, import_state

__all__ = ["ImportReport", "Manifest", "export_state", "import_state", "inspect_archive"]
