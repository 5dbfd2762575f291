"""Taking an artefact out of a tar archive that a stranger may have made."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from experts.errors import ArtefactError
from routers.artefact import ARRAYS, MANIFEST

MAX_MEMBERS = 16
MAX_MANIFEST_BYTES = 16 << 20


def unpack_artefact(archive: Path, folder: Path) -> None:
    """Write the two files of an artefact, which the archive holds at its top or in one folder.

    Nothing of the archive but their bytes is used: no paths, links, owners or modes. It must not be
    compressed, so that nothing in it is larger than it is itself.

    Raises:
        ArtefactError: the archive is damaged, or holds anything else.
    """
    found: set[str] = set()
    try:
        with tarfile.open(archive, "r:") as tar:
            for n, member in enumerate(tar, 1):
                if n > MAX_MEMBERS:
                    raise ArtefactError(f"the archive has more than {MAX_MEMBERS} members")
                if member.isdir():
                    continue
                name = PurePosixPath(member.name).name
                if not member.isreg() or member.issparse() or name not in (MANIFEST, ARRAYS):
                    raise ArtefactError(
                        f"the archive holds {member.name[:200]!r}: an artefact is the two files "
                        f"{MANIFEST} and {ARRAYS}"
                    )
                if name in found:
                    raise ArtefactError(f"the archive holds {name} twice")
                if name == MANIFEST and member.size > MAX_MANIFEST_BYTES:
                    raise ArtefactError(f"{MANIFEST} is over {MAX_MANIFEST_BYTES} bytes")
                found.add(name)
                source = tar.extractfile(member)
                assert source is not None
                with source, (folder / name).open("xb") as target:
                    shutil.copyfileobj(source, target)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise ArtefactError(
            f"the body is no tar archive that can be read (uncompressed): {error}"
        ) from error
    if missing := {MANIFEST, ARRAYS} - found:
        raise ArtefactError(f"the archive lacks {' and '.join(sorted(missing))}")
