"""Experts as training knows them: what a list says of ids, sizes, prices and instructions.

Training needs no engine, so a list for it may leave out how an expert is reached.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from composer.documents import Document, read_document
from experts.errors import ConfigError
from experts.spec import ExpertSpec

UNPLACED = "unplaced"
"""Stands for the engine of an expert that is only known by its outcomes."""

_ALIASES = {"price_in_per_mtok": "price_in", "price_out_per_mtok": "price_out", "model": "id"}


def read_expert_facts(path: Path) -> tuple[ExpertSpec, ...]:
    """Read a YAML or JSON list of experts, or a single one; without a `kind`, it is remote.

    Raises:
        ConfigError: with file and line where they are known.
    """
    document = read_document(path, key="experts")
    # One expert may stand alone, as its mapping of fields.
    alone = [document.data] if "id" in document.data else None
    entries = alone or document.data.get("experts")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path}: a list of experts is expected")
    return tuple(_spec(path, document, i, entry) for i, entry in enumerate(entries))


def _spec(path: Path, document: Document, i: int, entry: Any) -> ExpertSpec:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: expert {i + 1} is no mapping of fields")
    fields = {_ALIASES.get(key, key): value for key, value in entry.items() if value is not None}
    if "kind" not in fields:
        fields |= {"kind": "remote", "engine": fields.get("engine", UNPLACED)}
    try:
        spec = ExpertSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or str(fields.get("id", i + 1))
        line = document.lines.get(("experts", i))
        place = f"{path}:{line}" if line is not None else str(path)
        raise ConfigError(f"{place}: {where}: {first['msg']}") from error
    folders = {
        key: (path.parent / folder).resolve()
        for key in ("adapter", "path")
        if (folder := getattr(spec, key)) is not None
    }
    return spec.model_copy(update=folders)
